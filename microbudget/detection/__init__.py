"""Notebook 10: a detector in int8."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "detectors": "detectors",
        "boxes": "boxes",
        "coco": "coco",
        "quantize": "quantize",
        "picodet": "picodet",
    },
)
