"""Peak memory of a block of code, and giving memory back.

Linux itself keeps the highest resident size of a process, and starts over when told to:
exact, and without any work. Elsewhere only the sizes at the block's ends are known.
"""

import contextlib
import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(eq=False)
class Peak:
    """Memory during a block, in bytes.

    Attributes:
        highest: the highest resident memory of the process; where the system doesn't
            keep it, the higher one of the block's two ends.
        device: the most that torch had allocated on the GPU (0 without one).
    """

    highest: int
    device: int = 0


_open: list[Peak] = []  # of the blocks that we are in


@contextlib.contextmanager
def peak_memory():
    """Yield a ``Peak``: the process's highest resident memory while the block runs.

    Blocks may be nested. Resident memory is what the operating system counts: weights,
    activations and every library alike. It never falls to what it was, because
    allocators keep pages.
    """
    _note()  # for the blocks around: the system's mark starts over
    if _can_reset():
        _RESET.write_text("5")  # see man proc_pid_clear_refs
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    peak = Peak(highest=psutil.Process().memory_info().rss)
    _open.append(peak)
    try:
        yield peak
    finally:
        _note()
        _open.remove(peak)


def release_memory() -> None:
    """Give memory that is free already back to the system.

    glibc keeps what was freed in pieces of many sizes, a gigabyte after a training
    whose batches differ in length. Elsewhere than on Linux this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _note() -> None:
    """Tell every open block what has been seen since the marks started over."""
    highest = max(psutil.Process().memory_info().rss, _mark())
    device = cuda.max_memory_allocated() if (cuda := _cuda()) else 0
    for peak in _open:
        peak.highest = max(peak.highest, highest)
        peak.device = max(peak.device, device)


def _mark() -> int:
    """The highest resident size since the reset, in bytes; 0 where nobody keeps it."""
    if not _can_reset():
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


@cache
def _can_reset() -> bool:
    """Whether the system's mark starts over when told to: on Linux since 4.0."""
    try:
        _RESET.write_text("5")
    except OSError:  # another system, or a container that forbids it
        return False
    return True


def _cuda():
    """torch.cuda when torch is loaded and uses a GPU; never loads torch for it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None
