"""Picture files -> RGB pixels, whatever their mode, with errors that name the file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import DataError
from ..core.progress import bar

_MAX_PIXELS = 80_000_000  # a camera's largest; 240 MB decoded
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read one picture as RGB, upright.

    Grey, palette, CMYK and 16-bit pictures are converted (16 bits are scaled, not
    clipped), transparency is laid on white, of an animation the first frame is taken,
    and the camera's orientation mark is applied.

    Raises:
        DataError: the file is missing, empty, truncated or no picture.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                size = f"{picture.width} × {picture.height} pixels"
                raise DataError(f"{path} is implausibly large ({size}). Shrink it.")
            picture.load()  # decodes the first frame; raises when truncated
            return _to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise DataError(f"There is no picture {path}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is implausibly large ({error}). Shrink it.") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not a picture ({path.stat().st_size} bytes). "
            "Delete it, or replace it by a JPEG or PNG."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Delete it, or download it again."
        ) from error


def to_pixels(picture: Image.Image, size: int) -> np.ndarray:
    """Shortest side to ``size``, centre crop: (size, size, 3) uint8."""
    width, height = picture.size
    if (width, height) != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def load_images(
    paths: Sequence[str | os.PathLike],
    size: int,
    description: str = "pictures",
    show: bool = True,
) -> torch.Tensor:
    """Decode many pictures, in threads.

    Args:
        paths: picture files.
        size: height and width in pixels of the result.

    Returns:
        uint8 tensor (pictures, 3, size, size), in the order of ``paths``:
        3·size² bytes a picture. Decode once, scale per network.

    Raises:
        DataError: one of them can't be read; the message names it.
    """
    out = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)

    def read(index: int) -> None:
        pixels = to_pixels(open_image(paths[index]), size)
        out[index] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:  # PIL decodes and resizes outside the GIL
        work = pool.map(read, range(len(paths)))
        for _ in bar(work, description, total=len(paths)) if show else work:
            pass
    return out


class LazyImages:
    """Picture files that look like ``load_images(paths, size)`` but stay on disk.

    ``pictures[a:b]`` decodes those alone, so that memory holds one batch however many
    there are.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], size: int):
        self.paths, self.size = tuple(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return load_images(self.paths[rows], self.size, show=False)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        top = 65535 if picture.mode.startswith("I") else max(values.max(), 1e-12)
        values = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return Image.fromarray(values).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
