"""What an engine made of a graph: its operators, counted before and after."""

import os
from collections import Counter
from pathlib import Path

from ..core.errors import EngineError
from ..core.files import atomic_path
from . import loaders, packages, sessions

LEVELS = ("none", "basic", "extended", "all")


def operators(path: str | os.PathLike) -> Counter:
    """How many of each operator an ONNX file has, constants left out.

    Raises:
        EngineError: no such file, not ONNX, or onnx is not installed.
    """
    onnx = packages.load("onnx")
    if not Path(path).is_file():
        raise EngineError(f"There is no file {path}: export the model first.")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's own
        raise EngineError(f"{path} is no ONNX file ({error}).") from error
    return Counter(n.op_type for n in graph.node if n.op_type != "Constant")


def optimise(
    path: str | os.PathLike, target: str | os.PathLike, level: str = "all"
) -> Path:
    """Write the graph that ONNX Runtime really runs on this processor.

    Args:
        level: ``"basic"`` (constants, dead ends: exact up to rounding), ``"extended"``
            (fusions into operators of its own), ``"all"`` (and memory layouts).

    Raises:
        EngineError: another level, an unreadable file, or not installed.
    """
    runtime = packages.load("onnxruntime")
    names = dict(zip(LEVELS, ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED",
                              "ENABLE_ALL"), strict=True))  # fmt: skip
    if level not in names:
        raise EngineError(f"level={level!r}: use one of {', '.join(LEVELS)}.")
    options = loaders.onnxruntime_options(1)
    wanted = getattr(runtime.GraphOptimizationLevel, f"ORT_{names[level]}")
    options.graph_optimization_level = wanted
    with atomic_path(target, EngineError) as temporary:
        options.optimized_model_filepath = str(temporary)
        try:
            runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise EngineError(f"ONNX Runtime can't read {path} ({error}).") from error
    return Path(target)


def compiled(session: sessions.Session) -> Counter:
    """How many of each operator OpenVINO runs; what was fused into others is gone.

    Raises:
        EngineError: a session of another engine.
    """
    return Counter(info["layerType"] for info in _running(session))


def precisions(session: sessions.Session) -> Counter:
    """How many of OpenVINO's operators compute in which arithmetic, such as ``i8``.

    Raises:
        EngineError: a session of another engine.
    """
    return Counter(info["runtimePrecision"] for info in _running(session))


def _running(session: sessions.Session) -> list[dict[str, str]]:
    """What OpenVINO says of every operator; work on constants is done only once."""
    if session.engine != "openvino":
        raise EngineError(f"{session.engine} doesn't tell: use optimise() for ONNX.")
    constant, running = set(), []
    for node in session.native.get_runtime_model().get_ordered_ops():
        info = {k: str(v.astype(str)) for k, v in node.get_rt_info().items()}
        sources = [
            given.get_node().get_friendly_name() for given in node.input_values()
        ]
        if info["layerType"] == "Const" or (sources and constant.issuperset(sources)):
            constant.add(node.get_friendly_name())
        elif info["layerType"] not in ("Input", "Output"):
            running.append(info)
    return running
