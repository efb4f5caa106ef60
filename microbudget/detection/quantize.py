"""What a detector's file offers to quantization: its convolutions, and float16.

``export.quantize_static`` takes the names of the nodes to quantize and measures ranges
only once, so what each part of the network loses in int8 is soon found.
"""

import os
from pathlib import Path

import numpy as np

from ..core.errors import QuantizationError
from ..core.files import atomic_folder
from ..export import packages
from ..export.quantize import load_graph, quantizing


def convolutions(path: str | os.PathLike) -> dict[str, int]:
    """An ONNX file's convolutions, in their order: name -> how many weights.

    Raises:
        QuantizationError: no such file, or not ONNX. EngineError: onnx isn't installed.
    """
    with quantizing(path):
        graph = load_graph(path).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return {
        node.name: sizes[node.input[1]] for node in graph.node if node.op_type == "Conv"
    }


def to_float16(path: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """The network as OpenVINO's own file, weights stored in float16.

    On a CPU they are widened when they are loaded: half the bytes, the same arithmetic.

    Args:
        path: an .onnx file. folder: gets model.xml and model.bin.

    Raises:
        QuantizationError: no such file, or OpenVINO can't read it.
        EngineError: not installed.
    """
    ov = packages.load("openvino")
    with quantizing(path), atomic_folder(Path(folder), QuantizationError) as draft:
        graph = ov.Core().read_model(str(path))
        ov.save_model(graph, str(draft / "model.xml"), compress_to_fp16=True)
    return Path(folder)
