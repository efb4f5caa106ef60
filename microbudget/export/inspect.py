"""What an engine made of a graph: its operators, counted before and after."""

import os
from collections import Counter
from pathlib import Path

from ..core.files import atomic_path
from . import packages, sessions


def count_operators(path: str | os.PathLike) -> Counter:
    """How many of each operator an ONNX file has, constants left out.

    Raises:
        EngineError: no such file, not ONNX, or onnx is not installed.
    """
    onnx = packages.load("onnx")
    with packages.explained(f"{path} can't be read", "Export the model again."):
        graph = onnx.load(str(path), load_external_data=False).graph
    return Counter(n.op_type for n in graph.node if n.op_type != "Constant")


def optimize_graph(
    path: str | os.PathLike, target: str | os.PathLike, level: str = "all"
) -> Path:
    """Write the graph that ONNX Runtime really runs on this processor.

    Args:
        level: ``"basic"``: constants are computed, batch norms folded, and any engine
            can read it; ``"all"``: operators fused into its own, memory laid out, too.

    Raises:
        EngineError: an unreadable file, or not installed.
    """
    runtime = packages.load("onnxruntime")
    options = sessions.onnxruntime_options(threads=1)
    options.graph_optimization_level = getattr(
        runtime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}"
    )
    with (
        atomic_path(target) as written,
        packages.explained(f"ONNX Runtime can't read {path}"),
    ):
        options.optimized_model_filepath = str(written)
        runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Path(target)


def compiled_operators(session: sessions.Session) -> Counter:
    """How many of each operator OpenVINO runs; what was fused into others is gone."""
    return Counter(info["layerType"] for info in _running(session))


def operator_precisions(session: sessions.Session) -> Counter:
    """How many of OpenVINO's operators compute in which arithmetic, such as ``i8``."""
    return Counter(info["runtimePrecision"] for info in _running(session))


def _running(session: sessions.Session) -> list[dict[str, str]]:
    """What OpenVINO says of every operator; work on constants is done only once."""
    assert session.engine == "openvino"
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
