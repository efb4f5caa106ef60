"""Notebook 09: other engines, ONNX Runtime and OpenVINO."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "onnx": "onnx",
        "sessions": "sessions",
        "quantize": "quantize",
        "inspect": "inspect",
        "footprint": "footprint",
        "packages": "packages",
        "ranges": "ranges",
        "loaders": "loaders",
    },
)
