"""Boxes in one convention: ``x0, y0, x1, y1``, pixels of the original image, float32.

x grows to the right, y downwards, the origin is the upper left corner of the upper left
pixel; an image w pixels wide spans 0...w, so a box's width is ``x1 - x0``, without the
"+ 1" of older code. A network's own coordinates and COCO's ``x, y, width, height`` are
converted here, and used nowhere else.
"""

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

from ..core.errors import DataError

MAX_DETECTIONS = 100  # of an image; in pycocotools of a class in an image
SCORE_THRESHOLD = 0.05  # reported; low, because average precision looks at all scores
_CANDIDATES = 1000  # of a class, before suppression


def check_boxes(boxes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Boxes as float32 (n, 4) that follow the convention.

    Args:
        boxes: anything of shape (n, 4).
        size: (height, width) of the image; boxes must lie within, to half a pixel.

    Raises:
        DataError: another shape, corners in the wrong order or NaN, or boxes beyond the
            image: that is how swapped axes, or another image's pixels, show up.
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"Boxes have shape {boxes.shape}; it must be (n, 4).")
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(1)  # false for NaN, too
    if not ordered.all():
        raise DataError(
            f"{boxes[~ordered][0]} ends before it begins. Boxes are x0, y0, x1, y1; "
            "COCO's x, y, width, height go through from_coco_boxes."
        )
    if size is not None:
        height, width = size
        limit = np.array([width, height, width, height]) + 0.5
        if (boxes < -0.5).any() or (boxes > limit).any():
            raise DataError(
                f"Boxes reach from {boxes[:, :2].min(0)} to {boxes[:, 2:].max(0)}, the "
                f"image is {width} wide and {height} high. Are x and y swapped, or "
                "are they pixels of a resized image?"
            )
    return boxes


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of ``a`` (n, 4) with every one of ``b``.

    Returns:
        float32 (n, m) in 0...1; 0 where both boxes are empty.
    """
    a, b = (torch.from_numpy(np.asarray(boxes, np.float32)) for boxes in (a, b))
    return box_iou(a, b).nan_to_num(0).numpy()


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression among boxes of one class.

    The box with the best score stays, those whose IoU with it is above the threshold
    go, and so on with what is left. (torchvision's ``nms`` is a compiled operator,
    which is missing beside a torch for CPUs only.)

    Returns:
        Indices (k,) of the boxes that stay, best first.
    """
    order = np.argsort(-scores, kind="stable")
    ious = iou(boxes, boxes)
    alive = np.ones(len(boxes), bool)
    kept = []
    for i in order:
        if alive[i]:
            kept.append(i)
            alive &= ious[i] <= iou_threshold
    return np.array(kept, np.int64)


def multiclass_nms(
    boxes: np.ndarray, scores: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of all boxes in all classes: suppressed class by class, best first.

    Args:
        boxes: (n, 4). scores: (n, classes). iou_threshold: as ``nms``.

    Returns:
        int64 indices (k,) of ``boxes``, and the classes they were chosen for.
    """
    found = []
    for label in range(scores.shape[1]):
        own = scores[:, label]
        candidates = np.flatnonzero(own >= SCORE_THRESHOLD)
        best_first = np.argsort(-own[candidates], kind="stable")[:_CANDIDATES]
        candidates = candidates[best_first]
        kept = candidates[nms(boxes[candidates], own[candidates], iou_threshold)]
        found += [(i, label) for i in kept]
    indices, labels = np.array(found, np.int64).reshape(-1, 2).T
    best = np.argsort(-scores[indices, labels], kind="stable")[:MAX_DETECTIONS]
    return indices[best], labels[best]


def rescale_boxes(boxes: np.ndarray, old, new) -> np.ndarray:
    """Boxes after an image was resized from ``old`` to ``new``, (height, width) each.

    What reaches beyond the image is cut off.
    """
    factor = np.array([new[1] / old[1], new[0] / old[0]] * 2, np.float32)
    limit = np.array([new[1], new[0]] * 2, np.float32)
    return np.clip(np.asarray(boxes, np.float32) * factor, 0, limit)


def to_coco_boxes(boxes: np.ndarray) -> np.ndarray:
    """To COCO's ``x, y, width, height`` (n, 4)."""
    return box_convert(torch.from_numpy(check_boxes(boxes)), "xyxy", "xywh").numpy()


def from_coco_boxes(boxes) -> np.ndarray:
    """From COCO's ``x, y, width, height`` (n, 4)."""
    boxes = torch.tensor(np.asarray(boxes, np.float32)).reshape(-1, 4)
    return check_boxes(box_convert(boxes, "xywh", "xyxy").numpy())
