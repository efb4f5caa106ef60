"""Boxes in one convention: ``x0, y0, x1, y1``, pixels of the original picture, float32.

x grows to the right, y downwards, the origin is the upper left corner of the upper left
pixel; a picture w pixels wide spans 0...w, so a box's width is ``x1 - x0``, without the
"+ 1" of older code. A network's own coordinates and COCO's ``x, y, width, height`` are
converted at the door, here, and live nowhere else.
"""

import numpy as np

from ..core.errors import DataError

_CANDIDATES = 1000  # of a class, before suppression


def checked(boxes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Boxes as float32 (n, 4) that are what the convention says.

    Args:
        boxes: anything of shape (n, 4).
        size: (height, width) of the picture; boxes must lie within, to half a pixel.

    Raises:
        DataError: another shape, NaN, corners in the wrong order, or boxes beyond the
            picture: swapped axes, or another picture's pixels, show up so.
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"Boxes have shape {boxes.shape}; it must be (n, 4).")
    if not np.isfinite(boxes).all():
        raise DataError("A box has a coordinate that is not a number.")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        bad = boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)][0]
        raise DataError(
            f"{bad} ends before it begins. Boxes are x0, y0, x1, y1; COCO's x, y, "
            "width, height go through boxes.from_coco."
        )
    if size is not None and len(boxes):
        height, width = size
        limit = np.array([width, height, width, height]) + 0.5
        if boxes.min() < -0.5 or (boxes > limit).any():
            raise DataError(
                f"Boxes reach from {boxes[:, :2].min(0)} to {boxes[:, 2:].max(0)}, the "
                f"picture is {width} wide and {height} high. Are x and y swapped, or "
                "are they pixels of a resized picture?"
            )
    return boxes


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas (n,) in square pixels of boxes (n, 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of ``a`` (n, 4) with every one of ``b``.

    Returns:
        float32 (n, m) in 0...1; 0 where both boxes are empty.
    """
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # (n, m, 2)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(0).prod(2)  # (n, m)
    union = area(a)[:, None] + area(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression among boxes of one class.

    The best-scored box stays, those that overlap it by more than ``threshold`` (IoU)
    go, and so on with what is left.

    Returns:
        Places (k,) of the boxes that stay, best first.
    """
    order = np.argsort(-scores, kind="stable")
    overlap = iou(boxes, boxes)
    alive = np.ones(len(boxes), bool)
    kept = []
    for i in order:
        if alive[i]:
            kept.append(i)
            alive &= overlap[i] <= threshold
    return np.array(kept, np.int64)


def strongest(
    boxes: np.ndarray, scores: np.ndarray, least: float, overlap: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of all boxes in all classes: suppressed class by class, best first.

    Args:
        boxes: (n, 4). scores: (n, classes).
        least: score below which nothing is reported. overlap: as ``suppress``.
        most: in all; of a class, a thousand candidates are looked at.

    Returns:
        int64 places (k,) in ``boxes``, and the classes they were chosen for.
    """
    found = []
    for label in range(scores.shape[1]):
        some = np.flatnonzero(scores[:, label] >= least)
        some = some[np.argsort(-scores[some, label], kind="stable")[:_CANDIDATES]]
        kept = some[suppress(boxes[some], scores[some, label], overlap)]
        found += [(i, label) for i in kept]
    where, labels = np.array(found, np.int64).reshape(-1, 2).T
    best = np.argsort(-scores[where, labels], kind="stable")[:most]
    return where[best], labels[best]


def scaled(boxes: np.ndarray, old, new) -> np.ndarray:
    """Boxes after a picture was resized from ``old`` to ``new``, (height, width) each.

    What reaches beyond the picture is cut off.
    """
    factor = np.array([new[1] / old[1], new[0] / old[0]] * 2, np.float32)
    limit = np.array([new[1], new[0]] * 2, np.float32)
    return np.clip(np.asarray(boxes, np.float32) * factor, 0, limit)


def to_coco(boxes: np.ndarray) -> np.ndarray:
    """COCO's ``x, y, width, height`` (n, 4)."""
    boxes = checked(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def from_coco(boxes) -> np.ndarray:
    """From COCO's ``x, y, width, height`` (n, 4)."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return checked(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
