"""Image files -> RGB pixels, whatever their mode, with errors that name the file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..core import settings
from ..core.errors import DataError
from ..core.progress import bar

Image.MAX_IMAGE_PIXELS = 250_000_000  # cameras have 200 million; twice this is an error
_LARGE = 40_000_000  # pixels from which a JPEG is decoded at a fraction of its size
_IN_FLIGHT = 4  # images that are decoded at the same time, at most
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip  # the camera's orientation mark -> what brings the image upright
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
)


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
            if image.width * image.height > _LARGE:  # a JPEG; others ignore it
                image.draft("RGB", (2048, 2048))
            image.load()  # decodes the first frame; raises when truncated
            return _to_rgb(_upright(image))
    except Exception as error:  # of many types: each format has its own plugin
        raise DataError(
            f"{path} can't be read as an image ({error}). Replace it by a JPEG or PNG."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera was held; damaged notes are ignored, the pixels are fine.

    (``ImageOps.exif_transpose`` writes all notes again, and fails on odd ones.)
    """
    try:
        mark = image.getexif().get(ExifTags.Base.Orientation)
        mark = mark[0] if isinstance(mark, tuple) else mark
        turn = _TURNS.get(mark)
    except Exception:
        turn = None
    return image if turn is None else image.transpose(turn)


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

    workers = min(settings.load().threads, _IN_FLIGHT)
    with ThreadPoolExecutor(workers) as pool:  # PIL decodes outside the GIL
        work = pool.map(read, range(len(paths)))
        list(bar(work, description, total=len(paths)))
    return torch.from_numpy(pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError("it holds pixels that are no numbers (NaN or infinite)")
        # floats have no range of their own: 0 … 1, else that of 8 or of 16 bits
        tops = (65535,) if image.mode.startswith("I") else (1, 255, 65535)
        top = next((top for top in tops if values.max() <= top), values.max())
        values = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return Image.fromarray(values).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
