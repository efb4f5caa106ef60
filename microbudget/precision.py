"""Training and inference in bfloat16, where that is faster."""

import torch

from . import settings


def of_training(precision: str = "auto") -> str:
    """``training.fit``'s precision: bf16 where that is faster and wanted."""
    return "bf16" if settings.use_bf16(precision, settings.device()) else "no"


def autocast(precision: str = "auto") -> torch.autocast:
    """torch's autocast to bfloat16 where that is faster and wanted, else nothing.

    ``training.fit`` puts it around a model's ``forward``; a loss that calls parts of a
    model needs it itself.
    """
    device = settings.device()
    wanted = settings.use_bf16(precision, device)
    return torch.autocast(device.split(":")[0], torch.bfloat16, wanted)
