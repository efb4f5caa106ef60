"""PicoDet: how its outputs become boxes.

PicoDet (Yu et al. 2021, arXiv:2111.00902) is a one-stage detector: at every position of
four grids (8, 16, 32, 64 pixels apart) it scores each class and says how far away the
left, upper, right and lower edge are. A distance is not one number but a distribution
over 0...7 strides, whose mean is meant (Li et al. 2020, Generalized Focal Loss,
arXiv:2006.04388).
"""

import numpy as np

from .boxes import multiclass_nms, rescale_boxes
from .coco import MAX_DETECTIONS, Detections

SIZE = 800, 608  # height, width of the network's input
STRIDES = 8, 16, 32, 64
PARTS = {  # convolutions of this network, in the file's order
    "first ten": slice(0, 10),
    "rest of backbone": slice(10, 31),
    "neck": slice(31, 66),
    "heads": slice(66, None),
}


def decode(
    outputs,
    size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
) -> Detections:
    """From the network's outputs to boxes.

    Args:
        outputs: arrays (1, positions, classes) for each stride, then as many
            (1, positions, 4 · 8) of distances' distributions.
        size: (height, width) of the original image, whose pixels boxes are in.
        score_threshold: below it nothing is reported. For average precision low: it
            looks at all scores; for people 0.4.
        iou_threshold: above it the worse of two boxes of a class goes.
    """
    boxes, scores = [], []
    heads = len(STRIDES)
    for stride, score, edges in zip(
        STRIDES, outputs[:heads], outputs[heads:], strict=True
    ):
        score, edges = np.asarray(score)[0], np.asarray(edges)[0]
        positions = grid_positions(stride)
        assert len(score) == len(positions), f"another network: stride {stride}"
        likely = np.flatnonzero(score.max(1) >= score_threshold)
        outwards = np.array([-1, -1, 1, 1]) * edge_distances(edges[likely], stride)
        scores.append(score[likely])
        boxes.append(positions[likely] + outwards)
    boxes = np.concatenate(boxes)  # (candidates, 4), pixels of the input
    scores = np.concatenate(scores)  # (candidates, classes)
    boxes = rescale_boxes(boxes, SIZE, size)
    kept, labels = multiclass_nms(
        boxes, scores, score_threshold, iou_threshold, MAX_DETECTIONS
    )
    return Detections(boxes[kept], scores[kept, labels].astype(np.float32), labels)


def grid_positions(stride: int) -> np.ndarray:
    """Centres of a grid's cells as ``x, y, x, y``: float32 (positions, 4), by rows."""
    rows, columns = (int(np.ceil(side / stride)) for side in SIZE)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    grid = (np.stack([x, y, x, y], -1).reshape(-1, 4) + 0.5) * stride
    return grid.astype(np.float32)


def edge_distances(edges: np.ndarray, stride: int) -> np.ndarray:
    """Means of the four distributions, in pixels of the input: (positions, 4)."""
    logits = edges.reshape(len(edges), 4, edges.shape[1] // 4)  # (…, edges, bins)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ np.arange(logits.shape[-1], dtype=np.float32)) * stride
