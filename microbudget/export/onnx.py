"""A torch module as an ONNX file: its graph, caught by ``torch.export``.

``torch.export`` runs the module once with stand-ins for tensors and writes down every
operator; what Python decides on the way (an ``if`` on a shape) is decided for good.
Axes that shall stay free are named. torch then translates its operators to ONNX's, and
the file is compared with the module before anybody gets it.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..core.errors import EngineError, MicrobudgetError
from ..core.files import atomic_path
from . import packages

Free = Mapping[str, Mapping[int, str]]
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order
MOST = 1536 << 20  # bytes of weights; torch puts more into files beside the graph


class Listener(nn.Module):
    """Whisper's encoder as ``whisper_forward.encode`` computes it, for any window.

    (batch, mel bands, 2·frames) -> (batch, frames, d).
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        from ..models import whisper_forward

        return whisper_forward.encode(self.encoder, mel)


def pictures(model: nn.Module, path: str | os.PathLike, size: int, **options) -> Path:
    """Write a picture classifier: pictures (batch, 3, size, size) -> logits."""
    example = {"pictures": torch.rand(2, 3, size, size)}
    return save(model, path, example, {"pictures": {0: "batch"}}, **options)


def sentences(model: nn.Module, path: str | os.PathLike, **options) -> Path:
    """Write a sentence classifier: ids, mask int64 (batch, tokens) -> logits."""
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    axes = {0: "batch", 1: "tokens"}
    free = {"ids": axes, "mask": axes}
    return save(model, path, {"ids": mask * 3, "mask": mask}, free, **options)


def listener(encoder: nn.Module, path: str | os.PathLike, **options) -> Path:
    """Write Whisper's encoder: mel (batch, bands, 2·frames) -> states."""
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, encoder.conv1.in_channels, 200, generator=generator)
    free = {"mel": {0: "batch", 2: "frames"}}
    options = {"output": "states", **options}
    return save(Listener(encoder), path, {"mel": example}, free, **options)


def save(
    model: nn.Module,
    path: str | os.PathLike,
    example: Mapping[str, torch.Tensor],
    free: Free,
    *,
    output: str = "logits",
    raw: str | os.PathLike | None = None,
    program: str | os.PathLike | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Export a module, in eval mode and on the CPU, and compare the file with it.

    All the files appear, or none; the module is left as it was.

    Args:
        example: a name for each of ``forward``'s inputs, in their order, with a tensor
            of at least two along every free axis.
        free: input -> axis -> its name; the other axes are fixed for good.
        output: name of what ``forward`` gives, one tensor.
        raw: also write the graph before torch simplifies it.
        program: also write torch's own graph, an ``ExportedProgram`` (.pt2).
        tolerance: largest difference allowed, relative to the largest output; checked
            with the example and with one row of it, where ONNX Runtime is installed.

    Raises:
        EngineError: a package is missing, the module has more than ``MOST`` bytes of
            weights or can't be exported with these free axes, or the file computes
            something else.
    """
    packages.load("onnxscript")
    modes = [(module, module.training) for module in model.modules()]
    in_place = []
    try:
        own = model.eval()
        held = list(chain(own.parameters(), own.buffers()))
        if (size := sum(t.nbytes for t in held)) > MOST:
            raise EngineError(
                f"{type(model).__name__} has {size / 1e9:.1f} GB of weights; more than "
                f"{MOST / 1e9:.1f} GB don't go into one ONNX file. Halve them first."
            )
        if any(t.device.type != "cpu" for t in held):
            own = copy.deepcopy(model).to("cpu")
        # written in place, a ReLU6 takes the exporter ten times as long
        in_place = [m for m in own.modules() if getattr(m, "inplace", False)]
        for module in in_place:
            module.inplace = False
        traced = trace(own, example, free)
        translated = _translated(traced, example, free, output)
        with contextlib.ExitStack() as files:

            def new(where) -> Path:
                return files.enter_context(atomic_path(where, EngineError))

            if raw is not None:
                translated.save(new(raw))
            with _unwarned():
                translated.optimize()
            written = new(path)
            translated.save(written)
            _check(own, written, example, free, tolerance)
            if program is not None:
                # into an open file: torch wants a name to end in .pt2
                with new(program).open("wb") as file:
                    torch.export.save(traced, file)
    except MicrobudgetError:
        raise
    except Exception as error:  # torch and the translator have many
        raise EngineError(
            f"{type(model).__name__} can't be exported: {packages.reason(error)}"
        ) from error
    finally:
        for module in in_place:
            module.inplace = True
        for module, mode in modes:
            module.training = mode
    return Path(path)


def trace(
    model: nn.Module, example: Mapping[str, torch.Tensor], free: Free
) -> torch.export.ExportedProgram:
    """The module's graph, with the named axes free.

    Raises:
        EngineError: what the module does depends on their sizes, or on the data.
    """
    axes = [dict.fromkeys(free.get(n, {}), torch.export.Dim.DYNAMIC) for n in example]
    if unknown := sorted(set(free) - set(example)):
        raise EngineError(f"free names {unknown}; the inputs are {sorted(example)}.")
    try:
        with _unwarned(), torch.no_grad():
            return torch.export.export(
                model, tuple(example.values()), dynamic_shapes=tuple(axes)
            )
    except Exception as error:  # torch has many kinds for it
        raise EngineError(
            f"{type(model).__name__} can't be exported with the free axes "
            f"{ {n: list(a.values()) for n, a in free.items()} }: "
            f"{packages.reason(error)} Fix an axis, or write that part without "
            "depending on its size."
        ) from error


def difference(model: nn.Module, session, batches: Sequence[tuple]) -> float:
    """The largest |torch − engine|, relative to torch's largest output; NaN if any is.

    Args:
        session: of ``runtimes.load``.
        batches: tuples of input tensors, in the module's order.
    """
    worst = largest = 0.0
    for inputs in batches:
        with torch.inference_mode():
            expected = model(*inputs).float().cpu()
        given = torch.as_tensor(session(*inputs))
        if given.shape != expected.shape:
            raise EngineError(f"shapes differ: {tuple(given.shape)} from the engine, "
                              f"{tuple(expected.shape)} from torch.")  # fmt: skip
        # max() would drop a NaN
        worst = float(np.maximum(worst, float((given - expected).abs().max())))
        largest = max(largest, float(expected.abs().max()))
    return worst / max(largest, 1e-12)


def _translated(traced, example, free, output):
    """torch's graph in ONNX's operators, not simplified yet."""
    with _unwarned():
        return torch.onnx.export(
            traced, dynamo=True, optimize=False, verbose=False,
            input_names=list(example), output_names=[output],
            dynamic_shapes=[free.get(name, {}) for name in example],
        )  # fmt: skip


@contextlib.contextmanager
def _unwarned():
    """Without the warnings of torch's and onnxscript's own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(model, path, example, free, tolerance) -> None:
    from . import sessions

    try:
        session = sessions.load(path, "onnxruntime")
    except EngineError as error:
        if "onnxruntime" in sessions.available():
            raise
        warnings.warn(f"The file was not compared with torch: {error}", stacklevel=3)
        return
    whole = tuple(example.values())
    one = tuple(
        value[:1] if 0 in free.get(name, {}) else value
        for name, value in example.items()
    )
    found = difference(model, session, [whole, one])
    if not found <= tolerance:
        raise EngineError(
            f"The ONNX file differs from torch by {found:.1e} of the largest output; "
            f"{tolerance:.0e} is allowed. Nothing was written."
        )
