"""A frozen backbone runs once per image: its features, computed and kept.

Training a head for 100 epochs on a frozen backbone would run the backbone 100 times
on the same images for the same answers. Run it once, and an epoch costs milliseconds.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..core import settings
from ..core.precision import autocast
from ..core.progress import bar
from ..data.batching import batches
from ..models.vision import fold_batchnorm


def extract(
    backbone: nn.Module,
    images: torch.Tensor,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
    *,
    flip: bool = False,
) -> torch.Tensor:
    """Run a frozen backbone once over all images.

    Batch-norms are folded, memory is laid out channels-last, and the arithmetic is
    bfloat16 where that is faster. Cost is linear in the number of images; beside the
    result only one batch is in memory.

    Args:
        backbone: images (batch, 3, h, w) -> features (batch, …).
        images: uint8 (n, 3, height, width).
        preprocess: uint8 images -> the backbone's input.
        flip: mirror the images left to right first.

    Returns:
        float32 tensor (n, …) on the CPU, without gradient.
    """
    device = settings.device()
    batch_size = 8 if device == "cpu" else 64  # eight images' maps stay in the cache
    model = fold_batchnorm(backbone).to(device, memory_format=torch.channels_last)
    out = None
    with bar(None, "features", total=len(images), unit="image") as shown:
        for rows in batches(len(images), batch_size):
            x = images[rows].to(device)
            x = preprocess(x.flip(-1) if flip else x)
            with torch.inference_mode(), autocast():
                y = model(x.contiguous(memory_format=torch.channels_last))
            if out is None:  # an ordinary tensor: it can be trained on
                out = torch.empty((len(images), *y.shape[1:]))
            out[rows] = y.float().cpu()
            shown.update(len(x))
    return out
