"""PicoDet: how its outputs become boxes.

PicoDet (Yu et al. 2021, arXiv:2111.00902) is a one-stage detector: at every position of
four grids (8, 16, 32, 64 pixels apart) it scores each class and says how far away the
left, upper, right and lower edge are. A distance is not one number but a distribution
over 0...7 strides, whose mean is meant (Li et al. 2020, Generalized Focal Loss,
arXiv:2006.04388).
"""

import numpy as np
from scipy.special import softmax

from .boxes import SCORE_THRESHOLD, multiclass_nms, rescale_boxes
from .coco import Detections

SIZE = 800, 608  # height, width of the network's input
STRIDES = 8, 16, 32, 64
_IOU_THRESHOLD = 0.5  # above it the worse of two boxes of a class goes
PARTS = {  # convolutions of this network, in the file's order
    "first ten": slice(0, 10),
    "rest of backbone": slice(10, 31),
    "neck": slice(31, 66),
    "heads": slice(66, None),
}


def decode(outputs, size: tuple[int, int]) -> Detections:
    """From the network's outputs to boxes.

    Args:
        outputs: arrays (1, positions, classes) for each stride, then as many
            (1, positions, 4 · 8) of distances' distributions.
        size: (height, width) of the original image, whose pixels boxes are in.
    """
    boxes, scores = [], []
    for stride, score, edges in zip(STRIDES, outputs[:4], outputs[4:], strict=True):
        score, edges = np.asarray(score)[0], np.asarray(edges)[0]
        positions = grid_positions(stride)
        assert len(score) == len(positions), f"another network: stride {stride}"
        likely = np.flatnonzero(score.max(1) >= SCORE_THRESHOLD)
        outwards = np.array([-1, -1, 1, 1]) * edge_distances(edges[likely], stride)
        scores.append(score[likely])
        boxes.append(positions[likely] + outwards)
    boxes = np.concatenate(boxes)  # (candidates, 4), pixels of the input
    scores = np.concatenate(scores)  # (candidates, classes)
    boxes = rescale_boxes(boxes, SIZE, size)
    kept, labels = multiclass_nms(boxes, scores, _IOU_THRESHOLD)
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
    weights = softmax(logits, -1)
    return (weights @ np.arange(logits.shape[-1], dtype=np.float32)) * stride
