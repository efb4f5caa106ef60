"""Pictures with their boxes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np


def draw_boxes(
    axis, picture, found, classes: Sequence[str], *, names: bool = True
) -> None:
    """Draw a picture and boxes on it, a colour a class.

    Args:
        axis: matplotlib's.
        picture: uint8 (height, width, 3).
        found: has ``boxes`` (n, 4), ``labels`` (n,) and perhaps ``scores``.
        names: whether the class (and score) is written at each box.
    """
    axis.imshow(picture)
    axis.axis("off")
    palette = plt.get_cmap("tab10")
    scores = getattr(found, "scores", None)
    for i, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        x0, y0, x1, y1 = (float(v) for v in box)
        colour = palette(int(label) % 10)
        axis.add_patch(
            plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, lw=1.2)
        )
        if names:
            text = classes[label] + (f" {scores[i]:.2f}" if scores is not None else "")
            axis.text(x0, y0, text, fontsize=5, color="white", va="bottom",
                      bbox={"facecolor": colour, "pad": 0.5, "lw": 0})  # fmt: skip


def compare_boxes(picture: np.ndarray, found: Mapping[str, object], classes, **options):
    """The same picture several times, each with its own boxes: title -> what to draw.

    Returns:
        Array of Axes.
    """
    height = 3.2 * picture.shape[0] / picture.shape[1]
    figure, axes = plt.subplots(
        1, len(found), figsize=(3.2 * len(found), height + 0.3), squeeze=False
    )
    for axis, (title, own) in zip(axes.flat, found.items(), strict=True):
        draw_boxes(axis, picture, own, classes, **options)
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    return axes
