"""One small interface to the engines: torch, ONNX Runtime, OpenVINO.

Nothing here imports torch unless torch is the engine: a process that serves a model
needn't have it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core import settings
from ..core.errors import EngineError
from . import packages


@dataclass(frozen=True)
class Session:
    """A model in an engine, ready to answer.

    Attributes:
        engine: its name.
        load_s: seconds that reading and optimising the file took.
        native: the engine's own object.
        run: arrays, in the order of the model's inputs -> arrays.
    """

    engine: str
    load_s: float
    native: object = field(repr=False)
    run: Callable[[list[np.ndarray]], list[np.ndarray]] = field(repr=False)

    def __call__(self, *inputs):
        """Tensors or arrays, in the order of the model's inputs -> the output, numpy.

        Several outputs come as a tuple. Raises an EngineError for unfit inputs.
        """
        shapes = [tuple(np.shape(value)) for value in inputs]
        with packages.explained(
            f"{self.engine} refuses inputs of the shapes {shapes}",
            "Only axes that were dynamic in the export may change.",
        ):
            outputs = self.run([as_array(value) for value in inputs])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def module(self):
        """The same as a torch module on the CPU, for functions that evaluate models."""
        import torch

        class SessionModule(torch.nn.Module):
            def __init__(self, session: Session):
                super().__init__()
                self.session = session
                # callers ask a model's parameters for their device
                self.device_marker = torch.nn.Parameter(torch.empty(0))

            def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
                return torch.as_tensor(self.session(*inputs))

        return SessionModule(self).requires_grad_(False)


def available_engines() -> dict[str, str]:
    """The engines that are installed, with their versions."""
    found = {}
    for name in ENGINES:
        try:
            version = packages.load(name).__version__
        except EngineError:
            continue
        found[name] = version.split("-")[0]  # OpenVINO adds its build after a dash
    return found


def missing_engines() -> dict[str, str]:
    """The engines that aren't installed, with what to do about it."""
    missing = [name for name in ENGINES if name not in available_engines()]
    return {n: f"{n} is not installed: {packages.REMEDY}" for n in missing}


def load_session(
    model, engine: str = "onnxruntime", threads: int | None = None
) -> Session:
    """Read a model into an engine, which optimises it for this processor.

    Args:
        model: an .onnx file; for OpenVINO also a folder of ``quantize_openvino``; for
            torch a module (in eval mode from now on), or a .pt2 file of
            ``export_module``, which is only as safe as its maker: it holds a pickle.
        threads: to compute with; default: the course's.

    Raises:
        EngineError: no such file or engine, not installed, or it can't read the file.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine={engine!r}: use one of {', '.join(ENGINES)}.")
    if isinstance(model, str | os.PathLike):
        model = Path(model)
        if not model.exists():
            raise EngineError(f"There is no model at {model}: export one first.")
    elif engine != "torch":
        raise EngineError(f"{engine} reads files: export the module first.")
    packages.load(engine)  # not part of what loading a model takes
    started = time.perf_counter()
    with packages.explained(f"{engine} can't read {model}", "Export the model again."):
        native, run = ENGINES[engine](model, threads or settings.load().threads)
    return Session(engine, time.perf_counter() - started, native, run)


def as_array(value) -> np.ndarray:
    """A tensor, of any device, with a gradient or without, or an array; contiguous."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, order="C")


def onnxruntime_options(threads: int):
    """How the course runs ONNX Runtime: one operator at a time, on so many threads."""
    options = packages.load("onnxruntime").SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    # its idle threads would wait in a loop, and slow down whatever is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _load_torch(model, threads: int):
    """A module, on its own device, or a .pt2 file, on the CPU."""
    import torch

    if isinstance(model, Path):
        with model.open("rb") as file:
            model = torch.export.load(file).module()
    else:
        model.eval()
    device = next(model.parameters(), torch.empty(0)).device

    def run(arrays):
        before = torch.get_num_threads()  # they belong to the whole process
        try:
            if before != threads:  # to set them takes time even if nothing changes
                torch.set_num_threads(threads)
            with torch.inference_mode():
                given = [torch.from_numpy(array).to(device) for array in arrays]
                return [model(*given).float().cpu().numpy()]
        finally:
            if before != threads:
                torch.set_num_threads(before)

    return model, run


def _load_onnxruntime(path: Path, threads: int):
    """An .onnx file, on the CPU."""
    session = packages.load("onnxruntime").InferenceSession(
        str(path), onnxruntime_options(threads), providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]

    def run(arrays):
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return session, run


def _load_openvino(path: Path, threads: int):
    """An .onnx file, or a folder with model.xml and model.bin, on the CPU.

    Arithmetic in float32 where the file doesn't say int8: OpenVINO would otherwise
    take bfloat16 on processors that have it.
    """
    core = packages.load("openvino").Core()
    path = path / "model.xml" if path.is_dir() else path
    compiled = core.compile_model(
        core.read_model(str(path)), "CPU",
        {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
         "INFERENCE_PRECISION_HINT": "f32"},
    )  # fmt: skip
    places = range(len(compiled.inputs))

    def run(arrays):
        return list(compiled(dict(zip(places, arrays, strict=True))).values())

    return compiled, run


# name -> (model, threads) -> its own object, and what answers
ENGINES = {
    "torch": _load_torch,
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}
