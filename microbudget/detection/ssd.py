"""SSDLite on MobileNetV3, profile ``full``'s small detector: torchvision's, to ONNX.

SSD (Liu et al. 2016, arXiv:1512.02325) lays six grids over the picture. At each place
stand six default boxes; the network scores every class for each of them, "background"
among these, and says how the box is to be moved and stretched. SSDLite (Sandler et al.
2018, arXiv:1801.04381, section 6.2) predicts by depthwise-separable convolutions.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from ..core.errors import AssetError, DataError
from ..export import onnx
from . import boxes as bx
from . import picodet
from .coco import MOST, Found

SIZE = 320, 320  # height, width of the network's input
MEAN = STD = np.full(3, 0.5, np.float32)  # of 0...1: the network sees -1...1
GRIDS = 20, 10, 5, 3, 2, 1  # places a side
PARTS = {  # convolutions of this network, in their order
    "stem, three blocks": slice(0, 9),
    "rest of backbone": slice(9, 62),
    "extra stages": slice(62, 74),
    "heads": slice(74, None),
}
_MOVE, _STRETCH = 0.1, 0.2  # what outputs are multiplied by: torchvision's 1/10 and 1/5
_LARGEST = np.log(1000 / 16)  # of a stretch's logarithm


class Whole(nn.Module):
    """The network up to its heads, with one input and one output: what ONNX wants.

    (1, 3, 320, 320) in -1...1 -> (1, default boxes, classes + 1 + 4): the classes'
    logits, "background" first, then how to move the box's centre and stretch its sides.
    """

    def __init__(self, model):
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.head(list(self.backbone(pixels).values()))
        return torch.cat([found["cls_logits"], found["bbox_regression"]], -1)


def build() -> nn.Module:
    """torchvision's ``ssdlite320_mobilenet_v3_large`` with random weights."""
    return torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )


def load(folder: str | os.PathLike) -> nn.Module:
    """The network in a folder (``model.safetensors``), as :class:`Whole`, in eval mode.

    Raises:
        AssetError: the file is missing or another model's.
    """
    model, path = build(), Path(folder) / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch have their own kinds
        raise AssetError(
            f"{path} holds no SSDLite ({str(error)[:200]}). Delete its folder and run "
            "`microbudget fetch ssdlite-mobilenet`."
        ) from error
    return Whole(model).eval()


@cache
def classes() -> dict[int, str]:
    """Place among the logits, which is COCO's id -> name; gaps and background out."""
    table = torchvision.models.get_weight(
        "SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"
    ).meta["categories"]
    return {i: n for i, n in enumerate(table) if n not in ("__background__", "N/A")}


def export(model: nn.Module, path: str | os.PathLike) -> Path:
    """Write the ONNX file, compared with torch's output.

    Raises:
        EngineError: as ``onnx_file.save``.
    """
    example = {"image": torch.rand(1, 3, *SIZE) * 2 - 1}
    return onnx.save(model, path, example, {}, output="found")


def prepare(picture: np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3) -> float32 (1, 3, 320, 320) in -1...1.

    Raises:
        DataError: not such a picture.
    """
    return picodet.prepare(picture, SIZE, MEAN, STD)


def check_input(array: np.ndarray, picture: np.ndarray | None = None) -> None:
    """As ``picodet.check_input``, of this network's size and scale."""
    picodet.check_input(array, SIZE, picture, MEAN, STD)


def decode(
    output, size: tuple[int, int], *, least: float = 0.05, overlap: float = 0.55
) -> Found:
    """From the network's output to boxes.

    Args:
        output: (1, default boxes, classes + 1 + 4).
        size: (height, width) of the original picture.
        least: score below which nothing is reported. torchvision's published precision
            is with 0.001, and a little higher.
        overlap: IoU above which the worse of two boxes of a class goes.

    Raises:
        DataError: another network's output.
    """
    output, own, ids = np.asarray(output), default_boxes(), list(classes())
    wanted = 1, len(own), max(ids) + 1 + 4
    if output.shape != wanted:
        raise DataError(
            f"The output is {output.shape}; SSDLite's, exported by ssd.export for one "
            f"picture, is {wanted}: its default boxes, and classes with changes."
        )
    output = output[0]
    logits, change = output[:, :-4], output[:, -4:]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    scores = (weights / weights.sum(1, keepdims=True))[:, ids]
    centres = own[:, :2] + _MOVE * change[:, :2] * own[:, 2:]
    sides = own[:, 2:] * np.exp(np.minimum(_STRETCH * change[:, 2:], _LARGEST))
    edges = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    boxes = bx.scaled(edges, (1, 1), size)
    where, labels = bx.strongest(boxes, scores, least, overlap, MOST)
    return Found(boxes[where], scores[where, labels].astype(np.float32), labels)


@cache
def default_boxes() -> np.ndarray:
    """Centre, width and height, in 0...1: float32 (3234, 4), grid by grid, row by row.

    Liu et al., section 2.2: a grid's boxes have sizes s and √(s·s'), s' the next
    grid's, and those of area s² and aspects 2, 1/2, 3, 1/3; here s grows from 0.2 to
    0.95. Sides are cut at 1.
    """
    sizes = [*np.linspace(0.2, 0.95, len(GRIDS)), 1.0]
    found = []
    for count, s, following in zip(GRIDS, sizes, sizes[1:], strict=False):
        shapes = [(s, s), (np.sqrt(s * following),) * 2]
        for aspect in (2, 3):
            wide = s * np.sqrt(aspect), s / np.sqrt(aspect)
            shapes += [wide, wide[::-1]]
        y, x = np.mgrid[:count, :count]
        places = (np.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) / count
        shapes = np.clip(np.array(shapes), 0, 1)[None]  # (1, boxes, 2)
        both = np.broadcast_arrays(places, shapes)
        found.append(np.concatenate(both, -1).reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)
