"""Generated pages whose blocks are known exactly: images for a layout detector.

A page is typeset (``typeset``) and then "photographed": uneven light, blur and noise.
Boxes are the ink's own extent, in the convention of ``detection.boxes``: ``x0, y0, x1,
y1`` in pixels of the image, float32.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .typeset import CLASSES as CLASSES
from .typeset import Sheet


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with what is on it.

    Attributes:
        image: uint8 (height, width, 3), RGB.
        boxes: float32 (n, 4), ``x0, y0, x1, y1`` in pixels of ``image``.
        labels: int64 (n,), indices of ``CLASSES`` (or of COCO's).
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def generate(count: int, seed: int) -> list[AnnotatedImage]:
    """``count`` pages, each from a generator of its own: page i of a seed is the same
    however many are asked for, and different seeds share no page.
    """
    pages = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        sheet = Sheet(rng)
        sheet.compose()
        boxes, labels = np.float32(sheet.boxes), np.array(sheet.labels)
        pages.append(AnnotatedImage(_photographed(sheet.image, rng), boxes, labels))
    return pages


def _photographed(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, a lens that is not quite sharp, a sensor that is not quiet."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    tilt = rng.normal(0, 0.06, 2)
    light = rng.uniform(0.8, 1.0) * (1 + tilt[0] * down + tilt[1] * across)
    pixels = pixels * light[..., None].astype(np.float32)
    pixels += rng.uniform(0, 4) * rng.standard_normal((height, width, 1), np.float32)
    return pixels.clip(0, 255).astype(np.uint8)
