"""Int8 in other engines: dynamic and static in ONNX Runtime, NNCF's for OpenVINO.

Dynamic: weights are bytes, inputs are rounded at every call with a scale of their own.
Static: the scales of inputs are found beforehand, on calibration data, so nothing has
to be measured at a call. Integer arithmetic: Jacob et al. 2018 (arXiv:1712.05877).

A processor without VNNI adds pairs of products of bytes in sixteen bits, which can
overflow: signed weights then get seven bits (``reduce_range``; NNCF: overflow fix). For
unsigned ones ONNX Runtime has other, slower kernels, whose sums are exact.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import onednn
from ..core.errors import EngineError, QuantizationError
from ..core.files import atomic_folder, atomic_path
from . import loaders, packages
from .ranges import kept

Batches = Sequence[Mapping[str, object]]
METHODS = ("Average", "MinMax", "Entropy", "Percentile")  # of finding ranges
_CALIBRATED = "Do the calibration data have the names and shapes of the model's inputs?"
_AGAIN = "Export the model again."


def narrow() -> bool:
    """Whether weights should get seven bits on this processor."""
    return not (onednn.available() and onednn.adds_exactly())


def dynamic(
    path: str | os.PathLike,
    target: str | os.PathLike,
    *,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    operators: Sequence[str] | None = None,
) -> Path:
    """ONNX Runtime: weights in int8, inputs in uint8 with a scale found at every call.

    Args:
        path, target: .onnx files.
        per_channel: a scale for every output of a map, or one for all.
        reduce_range: weights of seven bits; default: where ``narrow`` says so.
        operators: types to quantize, such as ``["MatMul"]``; default: all it can.

    Raises:
        QuantizationError: it can't be quantized. EngineError: not installed.
    """
    quantize = packages.load("onnxruntime", "quantization")
    with plainly(path, _AGAIN), atomic_path(target, QuantizationError) as temporary:
        quantize.quantize_dynamic(
            graph_of(path), str(temporary), per_channel=per_channel,
            reduce_range=narrow() if reduce_range is None else reduce_range,
            weight_type=quantize.QuantType.QInt8, op_types_to_quantize=operators,
        )  # fmt: skip
    return Path(target)


def static(
    path: str | os.PathLike,
    target: str | os.PathLike,
    batches: Batches,
    *,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    operators: Sequence[str] | None = None,
    unsigned: bool = False,
    keep: Sequence[str] = (),
    method: str = "Average",
    ranges: str | os.PathLike | None = None,
) -> Path:
    """ONNX Runtime: weights in int8, inputs in uint8, scales from calibration data.

    Pairs of QuantizeLinear and DequantizeLinear are put around what is to be computed
    with bytes; the engine melts them into its integer kernels when it loads the file.

    Args:
        batches: calibration data, name -> tensor or array, that nobody is judged by.
        unsigned: weights of eight bits in uint8.
        keep: names of nodes to leave in floats, of ``first``.
        method: of finding ranges, one of ``METHODS``: ``"Average"`` is that of every
            batch's extremes.
        ranges: file for what is measured: written by the first try, read by the next,
            which must not quantize more of the network.
        per_channel, reduce_range, operators: as for ``dynamic``.

    Raises:
        QuantizationError: no calibration data, no such node or method, ranges of
            another network or method, or it can't be quantized.
        EngineError: not installed.
    """
    quantize = packages.load("onnxruntime", "quantization")
    kind = quantize.QuantType
    if method not in METHODS:
        raise QuantizationError(f"method={method!r}: use one of {', '.join(METHODS)}.")
    options = {
        "MatMulConstBOnly": True,  # products of activations stay float, as do results
        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        "CalibMovingAverage": method == "Average",
    }
    if reduce_range is None:
        reduce_range = narrow() and not unsigned
    found = "MinMax" if method == "Average" else method
    with contextlib.ExitStack() as files:
        files.enter_context(plainly(path))
        graph = graph_of(path)
        named(keep, graph.graph.node, path)
        temporary = files.enter_context(atomic_path(target, QuantizationError))
        cache, measured = None, False
        if ranges is not None:
            cache, measured = files.enter_context(kept(ranges, path, method))
        quantize.quantize_static(
            graph, str(temporary), None if measured else reader(batches),
            per_channel=per_channel, calibration_cache_path=cache,
            quant_format=quantize.QuantFormat.QDQ, reduce_range=reduce_range,
            activation_type=kind.QUInt8, nodes_to_exclude=list(keep),
            weight_type=kind.QUInt8 if unsigned else kind.QInt8,
            op_types_to_quantize=operators, extra_options=options,
            calibrate_method=quantize.CalibrationMethod[found],
        )  # fmt: skip
    return Path(target)


def first(path: str | os.PathLike, count: int, kind: str = "Conv") -> list[str]:
    """Names of a graph's nodes up to its ``count``-th operator of a kind.

    Raises:
        QuantizationError: no such file, there are fewer, or the nodes' names are
            missing or the same.
    """
    with plainly(path, _AGAIN):
        nodes = graph_of(path).graph.node
    places = [i for i, node in enumerate(nodes) if node.op_type == kind]
    if not 1 <= count <= len(places):
        raise QuantizationError(
            f"{Path(path).name} has {len(places)} of {kind}; {count} were asked for."
        )
    names = [node.name for node in nodes[: places[count - 1] + 1]]
    named(names, nodes, path)
    return names


def named(names: Sequence[str], nodes, path: str | os.PathLike) -> None:
    """Check that each name stands for exactly one of a graph's nodes.

    Raises:
        QuantizationError: it stands for none, or for several.
    """
    counts = Counter(node.name for node in nodes)
    if unknown := sorted(set(names) - set(counts)):
        raise QuantizationError(f"{Path(path).name} has no node {', '.join(unknown)}.")
    if any(not name or counts[name] > 1 for name in names):
        raise QuantizationError(
            f"Nodes of {Path(path).name} have no names or share one: they can't be "
            "chosen by name."
        )


def openvino(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    batches: Batches,
    *,
    transformer: bool = False,
    reduce_range: bool | None = None,
) -> Path:
    """OpenVINO by NNCF's post-training quantization: static, biases corrected.

    Args:
        path: an .onnx file.
        folder: gets model.xml (the graph) and model.bin (the weights).
        batches: calibration data, as for ``static``.
        transformer: NNCF then knows attention's patterns, and smooths outliers.
        reduce_range: as for ``dynamic``.

    Raises:
        QuantizationError: no calibration data, or it can't be quantized.
        EngineError: not installed.
    """
    ov, nncf = packages.load("openvino"), packages.load("nncf")
    fix, less = nncf.OverflowFix, narrow() if reduce_range is None else reduce_range
    with plainly(path), _quiet_nncf():
        feed = arrays(batches)
        quantized = nncf.quantize(
            ov.Core().read_model(str(path)), nncf.Dataset(feed),
            subset_size=len(feed), preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=fix.ENABLE if less else fix.DISABLE
            ),
        )  # fmt: skip
        with atomic_folder(Path(folder), QuantizationError) as draft:
            ov.save_model(quantized, str(draft / "model.xml"), compress_to_fp16=False)
    return Path(folder)


def arrays(batches: Batches) -> list[dict[str, np.ndarray]]:
    """Calibration data, tensors or arrays, as arrays.

    Raises:
        QuantizationError: there are none.
    """
    feed = [{name: loaders.array(v) for name, v in own.items()} for own in batches]
    if not feed:
        raise QuantizationError(
            "No calibration data: give a few batches of real inputs, none of which the "
            "model is judged by."
        )
    return feed


def reader(batches: Batches):
    """Calibration data as ONNX Runtime's quantizer asks for them."""

    class Reader(packages.load("onnxruntime", "quantization").CalibrationDataReader):
        def __init__(self):
            self.left = iter(arrays(batches))

        def get_next(self):
            return next(self.left, None)

    return Reader()


def graph_of(path: str | os.PathLike):
    """The ONNX model of a file, as ONNX Runtime's quantizers take it.

    Raises:
        QuantizationError: it can't be read.
    """
    onnx = packages.load("onnx")
    try:
        graph = onnx.load(str(path))
    except Exception as error:  # protobuf's own
        reason = packages.reason(error)
        raise QuantizationError(
            f"{Path(path).name} is no ONNX file ({reason}). {_AGAIN}"
        ) from error
    # what torch wrote down about shapes contradicts what the quantizer infers
    graph.graph.ClearField("value_info")
    return graph


@contextlib.contextmanager
def plainly(path: str | os.PathLike, remedy: str = _CALIBRATED):
    """Any library's failure on a file, as a QuantizationError; its advice unsaid."""
    if not Path(path).is_file():
        raise QuantizationError(f"There is no file {path}: export the model first.")
    import logging

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # ORT advises a preprocessing that torch has done
    try:
        yield
    except (QuantizationError, EngineError):
        raise
    except Exception as error:  # each library has many
        reason = packages.reason(error)
        raise QuantizationError(
            f"{Path(path).name} can't be quantized ({type(error).__name__}: {reason}). "
            f"{remedy}"
        ) from error
    finally:
        root.setLevel(level)


@contextlib.contextmanager
def _quiet_nncf():
    """Without its log and without its bars, which would want widgets."""
    bars = packages.load("nncf", "common.logging.track_progress")
    log = packages.load("nncf", "common.logging.logger").nncf_logger
    whole, level, begin = bars.track, log.level, bars.track.__init__

    def silent(self, *given, **options):
        begin(self, *given, **(options | {"disable": True}))

    whole.__init__ = silent
    log.setLevel("ERROR")
    try:
        yield
    finally:
        whole.__init__ = begin
        log.setLevel(level)
