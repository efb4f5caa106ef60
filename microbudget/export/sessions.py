"""One small interface to the engines: torch, ONNX Runtime, OpenVINO."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..core import settings
from ..core.errors import EngineError
from . import loaders, packages

ENGINES = tuple(loaders.LOADERS)


@dataclass(frozen=True)
class Session:
    """A model in an engine, ready to answer.

    Attributes:
        engine: its name. inputs: names of what it takes, in order.
        threads: it computes with.
        load_s: seconds that reading and optimising the file took.
        native: the engine's own object.
    """

    engine: str
    inputs: tuple[str, ...]
    threads: int
    load_s: float
    native: object = field(repr=False)
    _run: Callable = field(repr=False)

    def __call__(self, *inputs):
        """Tensors or arrays, in the order of ``inputs`` -> the output, numpy.

        Raises:
            EngineError: another number of inputs, or the engine refuses them.
        """
        if len(inputs) != len(self.inputs):
            raise EngineError(f"{len(inputs)} inputs given, wanted: {self.inputs}.")
        try:
            outputs = self._run([loaders.array(value) for value in inputs])
        except Exception as error:  # every engine has errors of its own
            shapes = [tuple(np.shape(value)) for value in inputs]
            raise EngineError(
                f"{self.engine} refuses inputs of the shapes {shapes}: "
                f"{packages.reason(error)}. Only axes that were left free at the "
                "export may change."
            ) from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def module(self) -> nn.Module:
        """The same as a torch module on the CPU, for functions that judge models."""
        return _AsModule(self)


class _AsModule(nn.Module):
    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        # callers ask where the parameters are
        self.nowhere = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.session(*inputs))


def available() -> dict[str, str]:
    """The engines that are here, with their versions."""
    return {name: found for name, found in _every().items() if found}


def missing() -> dict[str, str]:
    """The engines that aren't here, with what to do about it."""
    return {
        name: f"{name} is not installed: {packages.REMEDY}"
        for name, found in _every().items()
        if not found
    }


def load(path, engine: str = "onnxruntime", threads: int | None = None) -> Session:
    """Read a model into an engine, which optimises it for this processor.

    Arithmetic stays float32 where the model says so: OpenVINO would otherwise take
    bfloat16 on processors that have it.

    Args:
        path: an .onnx file; for OpenVINO also a folder that ``int8.openvino`` wrote;
            for torch a .pt2 file of ``onnx_file.save``, or a module, which stays
            what it is but for being in eval mode from now on. Its inputs are what its
            ``forward`` requires: those with a default can't be given.
        threads: to compute with; default: the course's.

    Raises:
        EngineError: no such file or engine, not installed, or it can't read the file.
    """
    threads = threads or settings.load().threads
    if engine not in ENGINES:
        raise EngineError(f"engine={engine!r}: use one of {', '.join(ENGINES)}.")
    if isinstance(path, nn.Module):
        if engine != "torch":
            raise EngineError(f"{engine} needs a file: onnx_file.save writes one.")
        return _eager(path, threads)
    path = Path(path)
    if not path.exists():
        raise EngineError(f"There is no model at {path}: export one first.")
    packages.load(engine)  # not part of what loading a model takes
    started = time.perf_counter()
    try:
        inputs, native, run = loaders.LOADERS[engine](path, threads)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            f"{engine} can't read {path.name}: {packages.reason(error)}. Export the "
            "model again."
        ) from error
    seconds = time.perf_counter() - started
    return Session(engine, tuple(inputs), threads, seconds, native, run)


def _every() -> dict[str, str]:
    found = {"torch": torch.__version__}
    for name in ENGINES[1:]:
        try:
            # OpenVINO adds its build after a dash
            found[name] = packages.load(name).__version__.split("-")[0]
        except EngineError:
            found[name] = ""
    return found


def _eager(model: nn.Module, threads: int) -> Session:
    model.eval()
    run = loaders.run_torch(model, threads)
    return Session("torch", loaders.input_names(model), threads, 0.0, model, run)
