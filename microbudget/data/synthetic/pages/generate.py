"""Generated pages whose blocks are known exactly: pictures for a layout detector.

A page is typeset (``typeset``) and then "photographed": uneven light, blur and noise.
Boxes are the ink's own extent, in the one convention of ``boxes``: ``x0, y0, x1, y1``
in pixels of the picture, float32.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ....core.errors import DataError
from .typeset import CLASSES, Sheet

__all__ = ["CLASSES", "Page", "generate", "render"]


@dataclass(frozen=True)
class Page:
    """A picture with what is on it.

    Attributes:
        picture: uint8 (height, width, 3), RGB.
        boxes: float32 (n, 4), ``x0, y0, x1, y1`` in pixels of ``picture``.
        labels: int64 (n,), places in ``CLASSES``.
    """

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def render(rng: np.random.Generator) -> Page:
    """One page; ``rng`` decides everything."""
    sheet = Sheet(rng)
    sheet.compose()
    return Page(
        _photographed(sheet.image, rng),
        np.array(sheet.boxes, np.float32).reshape(-1, 4),
        np.array(sheet.labels, np.int64),
    )


def generate(count: int, seed: int) -> list[Page]:
    """``count`` pages, each from a generator of its own: page i of a seed is the same
    however many are asked for, and different seeds share no page.

    Raises:
        DataError: fewer than one page.
    """
    if count < 1:
        raise DataError(f"{count} pages are asked for; at least 1 is needed.")
    return [render(np.random.default_rng([seed, i])) for i in range(count)]


def _photographed(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, a lens that is not quite sharp, a sensor that is not quiet."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    picture = np.asarray(image, np.float32)
    h, w = picture.shape[:2]
    down, across = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)
    tilt = rng.normal(0, 0.06, 2)
    light = rng.uniform(0.8, 1.0) * (1 + tilt[0] * down + tilt[1] * across)
    picture = picture * light[..., None].astype(np.float32)
    picture += rng.uniform(0, 4) * rng.standard_normal((h, w, 1), np.float32)
    return picture.clip(0, 255).astype(np.uint8)
