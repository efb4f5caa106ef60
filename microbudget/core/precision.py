"""bfloat16 where that is faster: decided once per machine, the same ever after.

Set-up (``microbudget fetch``) measures whether this processor multiplies faster in
bfloat16 than in float32, and writes the answer beside the assets. A run only reads it:
two runs with one seed compute the same numbers, however busy the machine is.
"""

import json
import os
import platform
import sys
import time
from functools import cache
from pathlib import Path

import torch

from . import settings
from .errors import SettingsError
from .files import atomic_path

_MIN_GAIN = 1.2  # bfloat16 must be so many times as fast to be used


def fast_bf16(kind: str) -> bool:
    """Whether to compute in bfloat16 on a device, unless a caller says otherwise.

    MICROBUDGET_BF16 overrides. A GPU's answer is its generation's, a CPU's is what
    set-up has written down for this processor; without that, and elsewhere: no.

    Args:
        kind: ``cpu``, ``cuda`` (an index such as ``cuda:1`` is ignored) or ``mps``.

    Raises:
        SettingsError: MICROBUDGET_BF16 is neither yes nor no.
    """
    if asked := os.environ.get("MICROBUDGET_BF16", "").strip().lower():
        if asked not in settings.ON | settings.OFF:
            raise SettingsError(
                f"MICROBUDGET_BF16={asked!r} must be 1 or 0; unset it to have what "
                "set-up has measured."
            )
        return asked in settings.ON
    if kind.startswith("cuda"):
        return torch.cuda.get_device_capability()[0] >= 8
    return kind == "cpu" and recorded() is True


def decide() -> bool:
    """Measure once whether this processor gains from bfloat16, and write it down.

    What is written already stays, as long as processor and torch are the same.

    Raises:
        SettingsError: the answer can't be written.
    """
    if (known := recorded()) is not None:
        return known
    gain = measure_gain() if has_bf16_instructions() else 0.0
    answer = gain > _MIN_GAIN
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, SettingsError) as temporary:
        found = {**_machine(), "bf16": answer, "gain": round(gain, 2)}
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return answer


def recorded() -> bool | None:
    """What set-up decided; None where it hasn't, or on another processor or torch."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or _machine().items() - found.items():
        return None
    return found.get("bf16")


def has_bf16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 itself; that alone isn't fast."""
    return bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def measure_gain() -> float:
    """float32's time over bfloat16's, for a product as in a small transformer (50 ms).

    Having the instructions isn't enough: an Intel server without AMX tiles multiplied
    bfloat16 at 0.6 times float32's speed.
    """
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    pairs = {
        dtype: (torch.ones(400, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype))
        for dtype in best
    }
    for _ in range(10):  # in turn, and the best: a slow moment hits both alike
        for dtype, (a, b) in pairs.items():
            started = time.perf_counter()
            a @ b
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


@cache
def processor_name() -> str:
    """The CPU's model, as the system gives it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file() -> Path:
    return settings.load().cache / "precision.json"


def _machine() -> dict[str, str | bool]:
    # several processors share a name ("Intel Xeon Processor"): the instructions tell
    return {
        "processor": processor_name(),
        "bf16_instructions": has_bf16_instructions(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "torch": torch.__version__,
    }


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


def of_training() -> str:
    """``training.fit``'s precision: bf16 where that is faster."""
    return "bf16" if fast_bf16(settings.device()) else "no"


def autocast(precision: str = "auto") -> torch.autocast:
    """torch's autocast to bfloat16 where that is faster and wanted, else nothing.

    ``training.fit`` puts it around a model's ``forward``; a loss that calls parts of a
    model needs it itself.
    """
    device = settings.device()
    wanted = use_bf16(precision, device)
    return torch.autocast(device.split(":")[0], torch.bfloat16, wanted)
