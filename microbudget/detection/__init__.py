"""Notebook 10: a detector in int8."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "load_detector": "detectors",
        "load_data": "detectors",
        # boxes
        "iou": "boxes",
        "to_coco_boxes": "boxes",
        "from_coco_boxes": "boxes",
        "check_boxes": "boxes",
        "rescale_boxes": "boxes",
        "nms": "boxes",
        # what the network sees
        "MEAN": "preprocess",
        "STD": "preprocess",
        # precision
        "Detections": "coco",
        "evaluate": "coco",
        "bootstrap": "coco",
        # fewer bits
        "to_float16": "quantize",
        "convolutions": "quantize",
    },
)
