"""Int8 for a detector's convolutions, with parts of the network left in float.

``export.int8.static`` quantizes a whole file. Here the ranges are measured once, kept
in a file, and any selection of convolutions is quantized by them: what a layer costs
can then be asked for every layer.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core.errors import QuantizationError
from ..core.files import atomic_folder, atomic_path
from ..export import packages
from ..export import quantize as onnx_int8
from ..export.ranges import kept

_AGAIN = "Export the network again."


def convolutions(path: str | os.PathLike) -> dict[str, int]:
    """An ONNX file's convolutions, in their order: name -> how many weights.

    Raises:
        QuantizationError: no such file, not ONNX, or names that are missing or the
            same. EngineError: onnx is not installed.
    """
    with onnx_int8.plainly(path, _AGAIN):
        graph = onnx_int8.graph_of(path).graph
    sizes = {given.name: int(np.prod(given.dims)) for given in graph.initializer}
    found = [node for node in graph.node if node.op_type == "Conv"]
    onnx_int8.named([node.name for node in found], found, path)
    return {node.name: sizes.get(node.input[1], 0) for node in found}


def quantize(
    path: str | os.PathLike,
    target: str | os.PathLike,
    ranges: str | os.PathLike,
    batches: Sequence[Mapping[str, np.ndarray]] = (),
    *,
    names: Sequence[str] | None = None,
    reduce_range: bool | None = None,
    method: str = "Average",
) -> Path:
    """Convolutions in int8: weights a scale per output channel, inputs one per tensor.

    Args:
        path, target: .onnx files.
        ranges: file of the tensors' least and largest values, and of the network they
            belong to; measured on ``batches`` and written if it isn't there.
        batches: calibration data, input's name -> tensor or array; on none of them may
            the detector be judged.
        names: the convolutions to quantize; default: all.
        reduce_range: weights of seven bits; default: where the processor needs it.
        method: ``"Average"`` of every batch's extremes, or ``"MinMax"``: the least and
            the largest value of all.

    Raises:
        QuantizationError: no ranges and no calibration data, another network's ranges
            or another method's, an unknown name or method, or it can't be quantized.
        EngineError: the engines aren't installed.
    """
    if method not in ("Average", "MinMax"):
        raise QuantizationError(f"method={method!r}: use 'Average' or 'MinMax'.")
    there, ranges = convolutions(path), Path(ranges)
    chosen = list(there) if names is None else list(names)
    if unknown := sorted(set(chosen) - set(there)):
        raise QuantizationError(
            f"{Path(path).name} has no convolution {', '.join(unknown)}."
        )
    if not chosen:
        raise QuantizationError("No convolution is to be quantized: copy the file.")
    if not ranges.is_file() and not len(batches):
        raise QuantizationError(
            f"There are no ranges at {ranges.name} and no calibration data: give "
            "a few inputs that the detector is not judged by."
        )
    library = packages.load("onnxruntime", "quantization")
    with (
        onnx_int8.plainly(path),
        atomic_path(target, QuantizationError) as temporary,
        kept(ranges, path, method) as (cache, measured),
    ):
        library.quantize_static(
            onnx_int8.graph_of(path), str(temporary),
            None if measured else onnx_int8.reader(batches), per_channel=True,
            reduce_range=onnx_int8.narrow() if reduce_range is None else reduce_range,
            quant_format=library.QuantFormat.QDQ,
            activation_type=library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=chosen if names is not None else None,
            calibration_cache_path=str(cache),
            extra_options={"CalibMovingAverage": method == "Average"},
        )  # fmt: skip
    return Path(target)


def half(path: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """The network as OpenVINO's own file, weights stored in float16.

    On a CPU they are widened when they are loaded: half the bytes, the same arithmetic.

    Args:
        path: an .onnx file. folder: gets model.xml and model.bin.

    Raises:
        QuantizationError: no such file, or OpenVINO can't read it.
        EngineError: not installed.
    """
    ov = packages.load("openvino")
    with (
        onnx_int8.plainly(path, _AGAIN),
        atomic_folder(Path(folder), QuantizationError) as draft,
    ):
        graph = ov.Core().read_model(str(path))
        ov.save_model(graph, str(draft / "model.xml"), compress_to_fp16=True)
    return Path(folder)
