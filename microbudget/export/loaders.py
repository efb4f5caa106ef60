"""How each engine reads a file: path, threads -> (inputs' names, its object, run).

``run`` takes a list of arrays and gives a list of arrays. Nothing here imports torch
unless torch is the engine: a process that serves a model needn't have it.
"""

import inspect
from pathlib import Path

import numpy as np

from . import packages


def torch(path: Path, threads: int):
    """A .pt2 file of ``onnx_file.save``. Only as safe as its maker: it holds a pickle.

    On the CPU, whose threads belong to the whole process.
    """
    module = packages.load("torch")
    with open(path, "rb") as file:
        program = module.export.load(file)
    model = program.module()
    return program.graph_signature.user_inputs, model, run_torch(model, threads)


def run_torch(model, threads: int):
    """``run`` of a torch module, on its own device."""
    module = packages.load("torch")
    first = next(model.parameters(), module.empty(0))

    def run(arrays):
        before = module.get_num_threads()
        if before != threads:
            module.set_num_threads(threads)
        try:
            with module.inference_mode():
                given = [module.from_numpy(a).to(first.device) for a in arrays]
                return [model(*given).float().cpu().numpy()]
        finally:
            if before != threads:
                module.set_num_threads(before)

    return run


def input_names(model) -> tuple[str, ...]:
    """What a torch module's ``forward`` can't do without, by position."""
    places = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return tuple(
        name
        for name, given in inspect.signature(model.forward).parameters.items()
        if given.kind in places and given.default is given.empty
    )


def array(value) -> np.ndarray:
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


def onnxruntime(path: Path, threads: int):
    """An .onnx file, on the CPU."""
    session = packages.load("onnxruntime").InferenceSession(
        str(path), onnxruntime_options(threads), providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]

    def run(arrays):
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return names, session, run


def openvino(path: Path, threads: int):
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
    names = [given.get_any_name() for given in compiled.inputs]

    def run(arrays):
        return list(compiled(arrays).values())

    return names, compiled, run


LOADERS = {"torch": torch, "onnxruntime": onnxruntime, "openvino": openvino}
