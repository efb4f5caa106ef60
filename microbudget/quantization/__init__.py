"""Notebook 05: quantization from scratch."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "affine": "affine",
        "mapping": "mapping",
        "observers": "observers",
        "fake_quant": "fake_quant",
        "integer": "integer",
        "kernels": "kernels",
        "formats": "formats",
        "checkpoint": "checkpoint",
        "mixed": "mixed",
    },
)
