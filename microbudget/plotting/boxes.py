"""Images with their boxes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes


def compare_boxes(
    image: np.ndarray, found: Mapping[str, object], classes: Sequence[str]
) -> np.ndarray:
    """The same image several times, each with its own boxes: title -> what to draw.

    Args:
        image: uint8 (height, width, 3).
        found: title -> has ``boxes`` (n, 4), ``labels`` (n,) and perhaps ``scores``.

    Returns:
        Array of Axes.
    """
    size = 3.2 * len(found), 3.2 * image.shape[0] / image.shape[1] + 0.3
    figure, axes = plt.subplots(1, len(found), figsize=size, squeeze=False)
    for axis, (title, own) in zip(axes.flat, found.items(), strict=True):
        axis.imshow(image)
        axis.axis("off")
        axis.set_title(title, fontsize=9)
        _draw_boxes(axis, own, classes)
    figure.tight_layout(pad=0.3)
    return axes


def _draw_boxes(axis: Axes, found, classes: Sequence[str]) -> None:
    """A frame and a label for each box, a colour for each class."""
    scores = getattr(found, "scores", None)
    for i, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        x0, y0, x1, y1 = map(float, box)
        colour = plt.get_cmap("tab10")(int(label) % 10)
        axis.add_patch(
            plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, lw=1.2)
        )
        text = classes[label] + (f" {scores[i]:.2f}" if scores is not None else "")
        axis.text(x0, y0, text, fontsize=5, color="white", va="bottom",
                  bbox={"facecolor": colour, "pad": 0.5, "lw": 0})  # fmt: skip
