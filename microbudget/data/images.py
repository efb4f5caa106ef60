"""Image files -> RGB pixels, whatever their mode, with errors that name the file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps

from ..core.errors import DataError
from ..core.progress import bar

# what PIL's plugins raise for damaged files
_DAMAGED = OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read one image as RGB, upright.

    Grey, palette, CMYK and 16-bit images are converted (16 bits are scaled, not
    clipped), transparency is laid on white, of an animation the first frame is taken,
    and the camera's orientation mark is applied.

    Raises:
        DataError: the file is missing, empty, truncated, enormous or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()  # decodes the first frame; raises when truncated
            return _to_rgb(ImageOps.exif_transpose(image))
    except _DAMAGED as error:
        raise DataError(
            f"{path} can't be read as an image ({error}). Replace it by a JPEG or PNG."
        ) from error


def load_images(
    paths: Sequence[str | os.PathLike], size: int, description: str = "decoding"
) -> torch.Tensor:
    """Decode many images, in threads.

    Args:
        paths: image files.
        size: height and width in pixels of the result.
        description: of the progress bar.

    Returns:
        uint8 tensor (images, 3, size, size), in the order of ``paths``:
        3·size² bytes an image. Decode once, scale per network.

    Raises:
        DataError: one of them can't be read; the message names it.
    """
    # A numpy array: under torch.inference_mode(), which holds for one thread only,
    # other threads may not write into a tensor made in this one.
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def read(index: int) -> None:
        image = open_image(paths[index])
        if image.size != (size, size):  # the shortest side to ``size``, centre crop
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        pixels[index] = np.asarray(image).transpose(2, 0, 1)  # -> (3, size, size)

    with ThreadPoolExecutor() as pool:  # PIL decodes and resizes outside the GIL
        work = pool.map(read, range(len(paths)))
        list(bar(work, description, total=len(paths)))
    return torch.from_numpy(pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I") else max(values.max(), 1e-12)
        values = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return Image.fromarray(values).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
