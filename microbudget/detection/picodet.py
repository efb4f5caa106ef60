"""PicoDet: what its network wants to see, and how its outputs become boxes.

PicoDet (Yu et al. 2021, arXiv:2111.00902) is a one-stage detector: at every place of
four grids (8, 16, 32, 64 pixels apart) it scores each class and says how far away the
left, upper, right and lower edge are. A distance is not one number but a distribution
over 0...7 strides, whose mean is meant (Li et al. 2020, Generalized Focal Loss,
arXiv:2006.04388).
"""

import numpy as np
from PIL import Image

from ..core.errors import DataError
from . import boxes as bx
from .coco import MOST, Found

SIZE = 800, 608  # height, width of the network's input
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of 0...1
STD = np.array([0.229, 0.224, 0.225], np.float32)
STRIDES = 8, 16, 32, 64
PARTS = {  # convolutions of this network, in the file's order
    "first ten": slice(0, 10),
    "rest of backbone": slice(10, 31),
    "neck": slice(31, 66),
    "heads": slice(66, None),
}


def prepare(
    picture: np.ndarray, size: tuple[int, int] = SIZE, mean=MEAN, std=STD
) -> np.ndarray:
    """From a picture to the network's input.

    Args:
        picture: uint8 (height, width, 3), RGB, any size.
        size: (height, width) of the input.
        mean, std: of 0...1, what the network was trained with: ImageNet's by default.

    Returns:
        float32 (1, 3, *size): resized without keeping the shape, as the network was
        trained, scaled to 0...1, then standardised.

    Raises:
        DataError: not such a picture: floats would be scaled twice.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise DataError(
            f"A picture must be uint8 (height, width, 3), not {picture.dtype} "
            f"{picture.shape}. Don't divide it by 255: this function does."
        )
    resized = Image.fromarray(picture).resize(size[::-1], Image.BILINEAR)
    scaled = np.asarray(resized, np.float32) / 255  # before any integer rounds it
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1)[None])


def check_input(
    array: np.ndarray,
    size: tuple[int, int] = SIZE,
    picture: np.ndarray | None = None,
    mean: np.ndarray = MEAN,
    std: np.ndarray = STD,
) -> None:
    """Raise DataError unless ``array`` looks like an input made by ``prepare``.

    A page or a photograph has dark *and* light places, and standardised numbers lie in
    about -2.2...2.7. A picture divided by 255 twice, or rounded to bytes after it was
    divided, is nearly black everywhere: all its numbers are near the least one.

    Args:
        array: the input.
        size: (height, width) that it must have.
        picture: what it was made of, uint8; one that is dark itself, but not as dark as
            one divided by 255, may be nearly black.
        mean, std: that it was standardised by.
    """
    if array.shape != (1, 3, *size) or array.dtype != np.float32:
        raise DataError(
            f"The network wants float32 {(1, 3, *size)}, not {array.dtype} "
            f"{array.shape}."
        )
    shades = array[0] * std[:, None, None] + mean[:, None, None]  # back to 0...1
    if shades.min() < -0.01 or shades.max() > 1.01:
        raise DataError(
            f"Undoing the scaling gives shades from {shades.min():.2f} to "
            f"{shades.max():.2f}; they must lie in 0...1. Was it scaled at all?"
        )
    # resizing moves the limit a little, hence 0.15
    dark = picture is not None and np.quantile(picture, 0.95) < 0.15 * 255
    if np.quantile(shades, 0.95) < 0.1 and not (dark and picture.max() > 1):
        raise DataError(
            f"The network is fed a near-black picture (95 % of it no brighter than "
            f"{np.quantile(shades, 0.95):.3f}, where white is 1). Was it divided by "
            "255 twice, or rounded to bytes after it was divided?"
        )


def decode(
    outputs, size: tuple[int, int], *, least: float = 0.05, overlap: float = 0.5
) -> Found:
    """From the network's outputs to boxes.

    Args:
        outputs: arrays (1, places, classes) for each stride, then as many
            (1, places, 4 · 8) of distances' distributions.
        size: (height, width) of the original picture, whose pixels boxes are in.
        least: score below which nothing is reported. For average precision low: it
            looks at all scores; for people 0.4.
        overlap: IoU above which the worse of two boxes of a class goes.

    Raises:
        DataError: outputs of another network.
    """
    boxes, scores = [], []
    heads = len(STRIDES)
    if len(outputs) != 2 * heads:
        raise DataError(f"{len(outputs)} outputs; PicoDet has {2 * heads}.")
    for stride, score, edges in zip(
        STRIDES, outputs[:heads], outputs[heads:], strict=True
    ):
        score, edges = np.asarray(score)[0], np.asarray(edges)[0]
        places = centres(stride)
        if len(score) != len(places):
            raise DataError(
                f"{len(score)} places at stride {stride}, not the network's."
            )
        some = np.flatnonzero(score.max(1) >= least)
        scores.append(score[some])
        boxes.append(
            places[some] + np.array([-1, -1, 1, 1]) * distances(edges[some], stride)
        )
    boxes = np.concatenate(boxes)  # (candidates, 4), pixels of the input
    scores = np.concatenate(scores)  # (candidates, classes)
    boxes = bx.scaled(boxes, SIZE, size)
    where, labels = bx.strongest(boxes, scores, least, overlap, MOST)
    return Found(boxes[where], scores[where, labels].astype(np.float32), labels)


def centres(stride: int) -> np.ndarray:
    """Places of a grid as ``x, y, x, y``: float32 (places, 4), row by row."""
    rows, columns = (int(np.ceil(side / stride)) for side in SIZE)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    grid = (np.stack([x, y, x, y], -1).reshape(-1, 4) + 0.5) * stride
    return grid.astype(np.float32)


def distances(edges: np.ndarray, stride: int) -> np.ndarray:
    """Means of the four distributions, in pixels of the input: (places, 4)."""
    logits = edges.reshape(len(edges), 4, edges.shape[1] // 4)  # (places, sides, bins)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ np.arange(logits.shape[-1], dtype=np.float32)) * stride
