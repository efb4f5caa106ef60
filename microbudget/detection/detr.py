"""DETR, the detector of profile ``full``: Hub model to ONNX, and its output.

DETR (Carion et al. 2020, arXiv:2005.12872) gives a hundred boxes at once, each with a
class or "nothing"; no grid, no suppression. Its classes are numbered by COCO's ids,
which have gaps: 91 numbers for 80 classes.
"""

import os

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from .boxes import MAX_DETECTIONS, SCORE_THRESHOLD, rescale_boxes
from .coco import Detections

SIZE = 800, 1056  # height, width of the network's input
PARTS = {  # convolutions of a ResNet-50, in their order
    "stem, stage 1": slice(0, 11),
    "stage 2": slice(11, 24),
    "stage 3": slice(24, 43),
    "stage 4": slice(43, 53),
    "projection": slice(53, None),
}


class SingleOutputDetr(nn.Module):
    """DETR with one input and one output, of a fixed size: what ONNX wants.

    (1, 3, height, width) standardised -> (1, 100, classes + 1 + 4): the classes'
    logits, "nothing" last, and the box as centre, width, height, each in 0...1.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(
            pixels.shape[0], *pixels.shape[2:], dtype=torch.long, device=pixels.device
        )
        found = self.model(pixel_values=pixels, pixel_mask=mask)
        return torch.cat([found.logits, found.pred_boxes], -1)


def load(folder: str | os.PathLike) -> nn.Module:
    """The Hub's model in a folder, as :class:`SingleOutputDetr`, in eval mode."""
    import transformers

    model = transformers.DetrForObjectDetection.from_pretrained(
        folder, local_files_only=True
    )
    return SingleOutputDetr(model).eval()


def decode(output, size: tuple[int, int], ids: list[int]) -> Detections:
    """From the network's output to boxes.

    Args:
        output: (1, queries, numbers + 1 + 4).
        size: (height, width) of the original image.
        ids: COCO's ids of the classes, in the order that labels count them.
    """
    output = np.asarray(output)[0]
    logits, centred = output[:, :-4], output[:, -4:]
    # Without the gaps and "nothing": (queries, classes).
    probabilities = softmax(logits, 1)[:, ids]
    labels, scores = probabilities.argmax(1), probabilities.max(1)
    low, high = centred[:, :2] - centred[:, 2:] / 2, centred[:, :2] + centred[:, 2:] / 2
    boxes = rescale_boxes(np.concatenate([low, high], 1), (1, 1), size)
    best = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
    best = best[scores[best] >= SCORE_THRESHOLD]
    return Detections(boxes[best], scores[best].astype(np.float32), labels[best])
