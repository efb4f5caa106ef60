"""bfloat16 where that is faster, and how it is known."""

import os
import time
from functools import cache

import torch

from . import settings
from .errors import SettingsError


def fast_bf16(kind: str) -> bool:
    """Whether a device computes faster in bfloat16 than in float32.

    A GPU's answer is its generation's. An x86 processor's is measured, once a process:
    having the instructions isn't enough (an Intel server without AMX tiles multiplied
    at 0.6 times float32's speed). Other processors: no. MICROBUDGET_BF16 overrides.

    Args:
        kind: ``cpu``, ``cuda`` (an index such as ``cuda:1`` is ignored) or ``mps``.

    Raises:
        SettingsError: MICROBUDGET_BF16 is neither yes nor no.
    """
    if asked := os.environ.get("MICROBUDGET_BF16", "").strip().lower():
        if asked not in settings.ON | settings.OFF:
            raise SettingsError(
                f"MICROBUDGET_BF16={asked!r} must be 1 or 0; unset it to have it "
                "measured."
            )
        return asked in settings.ON
    if kind.startswith("cuda"):
        return torch.cuda.get_device_capability()[0] >= 8
    if kind != "cpu":
        return False
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # processes that train together must agree: no measuring there
    return native and ("LOCAL_RANK" in os.environ or _bf16_is_faster())


@cache
def _bf16_is_faster(least: float = 1.2) -> bool:
    """Whether a matrix product gains, of a small transformer's shape: some 50 ms."""
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    pairs = {d: (torch.ones(400, 384, dtype=d), torch.ones(384, 1536, dtype=d))
             for d in best}  # fmt: skip
    for _ in range(10):  # in turn, and the best: a slow moment hits both alike
        for kind, (a, b) in pairs.items():
            started = time.perf_counter()
            a @ b
            best[kind] = min(best[kind], time.perf_counter() - started)
    return best[torch.float32] > least * best[torch.bfloat16]


def use_bf16(precision: str, kind: str) -> bool:
    """Whether to compute in bfloat16 on a device.

    Args:
        precision: ``"auto"`` (where it is faster), ``"bf16"``, ``"no"`` (float32).
        kind: as for ``fast_bf16``.

    Raises:
        SettingsError: another precision.
    """
    if precision not in ("auto", "bf16", "no"):
        raise SettingsError(f"precision={precision!r}: use 'auto', 'bf16' or 'no'.")
    return precision == "bf16" or (precision == "auto" and fast_bf16(kind))


def of_training(precision: str = "auto") -> str:
    """``training.fit``'s precision: bf16 where that is faster and wanted."""
    return "bf16" if use_bf16(precision, settings.device()) else "no"


def autocast(precision: str = "auto") -> torch.autocast:
    """torch's autocast to bfloat16 where that is faster and wanted, else nothing.

    ``training.fit`` puts it around a model's ``forward``; a loss that calls parts of a
    model needs it itself.
    """
    device = settings.device()
    wanted = use_bf16(precision, device)
    return torch.autocast(device.split(":")[0], torch.bfloat16, wanted)
