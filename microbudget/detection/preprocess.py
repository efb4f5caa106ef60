"""What a detector's network wants to see, and what it sees when that goes wrong."""

import numpy as np
from PIL import Image

from ..core.errors import DataError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of 0...1
STD = np.array([0.229, 0.224, 0.225], np.float32)


def prepare_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """From an image to the network's input.

    Args:
        image: uint8 (height, width, 3), RGB, any size.
        size: (height, width) of the input.

    Returns:
        float32 (1, 3, *size): resized without keeping the shape, scaled to 0...1, then
        standardised. PicoDet was trained that way; DETR's shapes were kept, but a fixed
        size quantizes and times more simply than padding.

    Raises:
        DataError: not such an image: floats would be scaled twice.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"An image must be uint8 (height, width, 3), not {image.dtype} "
            f"{image.shape}. Don't divide it by 255: this function does."
        )
    resized = Image.fromarray(image).resize(size[::-1], Image.BILINEAR)
    scaled = np.asarray(resized, np.float32) / 255  # before any integer rounds it
    return np.ascontiguousarray(((scaled - MEAN) / STD).transpose(2, 0, 1)[None])


def check_input(array: np.ndarray, image: np.ndarray | None = None) -> None:
    """Raise DataError unless ``array`` looks like an input made by ``prepare_image``.

    A page or a photograph has dark *and* light places, and standardised numbers lie in
    about -2.2...2.7. An image divided by 255 twice, or rounded to bytes after it was
    divided, is nearly black everywhere: all its numbers are near the smallest one.

    Args:
        array: float32 (1, 3, height, width).
        image: what it was made of, uint8; one that is dark itself, but not as dark as
            one divided by 255, may be nearly black.
    """
    shades = array[0] * STD[:, None, None] + MEAN[:, None, None]  # back to 0...1
    if shades.min() < -0.01 or shades.max() > 1.01:
        raise DataError(
            f"Undoing the scaling gives shades from {shades.min():.2f} to "
            f"{shades.max():.2f}; they must lie in 0...1. Was it scaled at all?"
        )
    # Of a dark image, resizing may move the limit a little: hence 0.15, not 0.1.
    dark = image is not None and np.quantile(image, 0.95) < 0.15 * 255
    if np.quantile(shades, 0.95) < 0.1 and not (dark and image.max() > 1):
        raise DataError(
            f"The network is fed a near-black image (95 % of it no brighter than "
            f"{np.quantile(shades, 0.95):.3f}, where white is 1). Was it divided by "
            "255 twice, or rounded to bytes after it was divided?"
        )
