"""Int8 in other engines: dynamic and static in ONNX Runtime, NNCF's for OpenVINO.

Dynamic: weights are bytes, inputs are rounded at every call with a scale of their own.
Static: the scales of inputs are found beforehand, on calibration data, so nothing has
to be measured at a call. Integer arithmetic: Jacob et al. 2018 (arXiv:1712.05877).

A processor without VNNI adds pairs of products of bytes in sixteen bits, which can
overflow: signed weights then get seven bits (``reduce_range``; NNCF: overflow fix). For
unsigned ones ONNX Runtime has other, slower kernels, whose sums are exact.
"""

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import joblib
import numpy as np

from ..core import onednn
from ..core.errors import QuantizationError
from ..core.files import atomic_folder, atomic_path
from . import packages
from .sessions import as_array

Batches = Sequence[Mapping[str, object]]
METHODS = ("Average", "MinMax", "Entropy", "Percentile")  # of calibration


@dataclass(frozen=True)
class StaticConfig:
    """How ``quantize_static`` does it.

    Attributes:
        operators: types to quantize, such as ``("MatMul",)``; default: all it can.
        nodes: names of those to quantize; default: all of these types.
        float_nodes: names of nodes to leave in floats.
        unsigned: weights of eight bits in uint8.
        reduce_range: weights of seven bits; default: where the processor needs it, and
            they are signed.
        method: of calibration, one of ``METHODS``: ``"Average"`` is that of every
            batch's extremes.
    """

    operators: Sequence[str] | None = None
    nodes: Sequence[str] | None = None
    float_nodes: Sequence[str] = ()
    unsigned: bool = False
    reduce_range: bool | None = None
    method: str = "Average"


def needs_reduced_range() -> bool:
    """Whether signed weights should get seven bits on this processor."""
    return not (onednn.available() and onednn.adds_exactly())


def quantize_dynamic(
    path: str | os.PathLike,
    target: str | os.PathLike,
    *,
    operators: Sequence[str] | None = None,
) -> Path:
    """ONNX Runtime: weights in int8, inputs in uint8 with a scale found at every call.

    Args:
        operators: types to quantize, such as ``["MatMul"]``; default: all it can.

    Raises:
        QuantizationError: it can't be quantized. EngineError: not installed.
    """
    library = packages.load("onnxruntime.quantization")
    with quantizing(path), atomic_path(target, QuantizationError) as written:
        library.quantize_dynamic(
            load_graph(path), str(written), per_channel=True,
            reduce_range=needs_reduced_range(), weight_type=library.QuantType.QInt8,
            op_types_to_quantize=operators,
        )  # fmt: skip
    return Path(target)


def quantize_static(
    path: str | os.PathLike,
    target: str | os.PathLike,
    batches: Batches,
    config: StaticConfig | None = None,
) -> Path:
    """ONNX Runtime: weights in int8, inputs in uint8, scales from calibration data.

    Pairs of QuantizeLinear and DequantizeLinear are put around what is to be computed
    with bytes; the engine fuses them into its integer kernels when it loads the file.
    Ranges are measured once: a later call with the same network, data, operators and
    method may choose other nodes and weights in a moment.

    Args:
        batches: calibration data, name -> tensor or array; no test data among them.

    Raises:
        QuantizationError: no calibration data, no such node or method, or it can't be
            quantized.
        EngineError: not installed.
    """
    config = config or StaticConfig()
    library, feed = packages.load("onnxruntime.quantization"), as_arrays(batches)
    if config.method not in METHODS:
        raise QuantizationError(
            f"method={config.method!r}: use one of {', '.join(METHODS)}."
        )
    average = config.method == "Average"
    reduce_range = config.reduce_range
    if reduce_range is None:
        reduce_range = needs_reduced_range() and not config.unsigned

    class Reader(library.CalibrationDataReader):
        batches = iter(feed)

        def get_next(self):
            return next(self.batches, None)

    types = library.QuantType
    with (
        quantizing(path, "Do the calibration data have the inputs' names and shapes?"),
        atomic_path(target, QuantizationError) as written,
    ):
        graph = load_graph(path)
        names = {*(config.nodes or ()), *config.float_nodes}
        if unknown := names - {node.name for node in graph.graph.node}:
            raise QuantizationError(
                f"{Path(path).name} has no node {', '.join(sorted(unknown))}."
            )
        library.quantize_static(
            graph, str(written), Reader(),
            quant_format=library.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=config.operators, nodes_to_quantize=config.nodes,
            nodes_to_exclude=list(config.float_nodes), reduce_range=reduce_range,
            activation_type=types.QUInt8,
            weight_type=types.QUInt8 if config.unsigned else types.QInt8,
            calibrate_method=library.CalibrationMethod[
                "MinMax" if average else config.method
            ],
            calibration_cache_path=ranges_file(path, feed, config),
            extra_options={
                "MatMulConstBOnly": True,  # products of activations stay float
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                "CalibMovingAverage": average,
            },
        )  # fmt: skip
    return Path(target)


def quantize_openvino(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    batches: Batches,
    *,
    transformer: bool = False,
) -> Path:
    """OpenVINO by NNCF's post-training quantization: static, biases corrected.

    Args:
        path: an .onnx file.
        folder: gets model.xml (the graph) and model.bin (the weights).
        batches: calibration data, as for ``quantize_static``.
        transformer: NNCF then knows attention's patterns, and smooths outliers.

    Raises:
        QuantizationError: no calibration data, or it can't be quantized.
        EngineError: not installed.
    """
    ov, nncf = packages.load("openvino"), packages.load("nncf")
    fix = nncf.OverflowFix.ENABLE if needs_reduced_range() else nncf.OverflowFix.DISABLE
    nncf.set_log_level(logging.ERROR)
    # its progress bars have no switch of their own, and would want widgets
    bars = packages.load("nncf.common.logging.track_progress").track
    silent = functools.partialmethod(bars.__init__, disable=True)
    with quantizing(path), mock.patch.object(bars, "__init__", silent):
        feed = as_arrays(batches)
        quantized = nncf.quantize(
            ov.Core().read_model(str(path)), nncf.Dataset(feed),
            subset_size=len(feed), preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )  # fmt: skip
        with atomic_folder(Path(folder), QuantizationError) as draft:
            ov.save_model(quantized, str(draft / "model.xml"), compress_to_fp16=False)
    return Path(folder)


def first_nodes(path: str | os.PathLike, count: int) -> list[str]:
    """Names of a graph's nodes up to its ``count``-th convolution.

    Raises:
        QuantizationError: no such file, or it has fewer of them.
    """
    with quantizing(path, f"Has it {count} convolutions?"):
        nodes = load_graph(path).graph.node
        last = [i for i, node in enumerate(nodes) if node.op_type == "Conv"][count - 1]
    return [node.name for node in nodes[: last + 1]]


def as_arrays(batches: Batches) -> list[dict[str, np.ndarray]]:
    """Calibration data, tensors or arrays, as arrays.

    Raises:
        QuantizationError: there are none.
    """
    feed = [{name: as_array(v) for name, v in batch.items()} for batch in batches]
    if not feed:
        raise QuantizationError(
            "No calibration data: give a few batches of real inputs, none of them from "
            "the test set."
        )
    return feed


@functools.cache
def ranges_folder() -> tempfile.TemporaryDirectory:
    """Where measured ranges are kept; it goes with this process."""
    return tempfile.TemporaryDirectory(prefix="microbudget-ranges-")


def ranges_file(path, feed: list[dict[str, np.ndarray]], config: StaticConfig) -> Path:
    """A file's place for ranges, named by all that they depend on.

    ONNX Runtime measures every operator of the types to quantize, whatever nodes are
    chosen, and asks nothing of a file of ranges that it finds.
    """
    network = Path(path).read_bytes()
    digest = joblib.hash((network, feed, config.operators, config.method))
    return Path(ranges_folder().name, f"{digest}.json")


def load_graph(path: str | os.PathLike):
    """The ONNX model of a file, as ONNX Runtime's quantizers take it."""
    graph = packages.load("onnx").load(str(path))
    # what torch wrote down about shapes contradicts what the quantizer infers
    graph.graph.ClearField("value_info")
    return graph


@contextlib.contextmanager
def quantizing(
    path: str | os.PathLike, remedy: str = "Export the model again."
) -> Iterator[None]:
    """Any library's failure on a file, as a QuantizationError; its advice unsaid."""
    if not Path(path).is_file():
        raise QuantizationError(f"There is no file {path}: export the model first.")
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # ORT advises a preprocessing that torch has done
    what = f"{Path(path).name} can't be quantized"
    try:
        with packages.explained(what, remedy, QuantizationError):
            yield
    finally:
        root.setLevel(level)
