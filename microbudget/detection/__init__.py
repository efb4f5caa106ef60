"""Notebook 10: a detector in int8."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "load_detector": "detectors",
        "load_data": "detectors",
        # boxes, and what the network sees
        "iou": "boxes",
        "to_coco_boxes": "boxes",
        "from_coco_boxes": "boxes",
        "check_boxes": "boxes",
        "MEAN": "preprocess",
        "STD": "preprocess",
        # precision
        "evaluate": "coco",
        "bootstrap": "coco",
        "Detections": "coco",
        "rescale_boxes": "boxes",
        # fewer bits
        "to_float16": "quantize",
        "convolutions": "quantize",
        # the exercise
        "nms": "boxes",
    },
)
