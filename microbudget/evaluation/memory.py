"""Peak memory of a block of code."""

import contextlib
import ctypes
import threading
from dataclasses import dataclass

import psutil

_INTERVAL = 0.005  # seconds between looks; a shorter spike can be missed


@dataclass(eq=False)
class Peak:
    """Memory during a block, in bytes.

    Attributes:
        before: resident memory of the process when the block began.
        highest: the highest resident memory seen in it.
        device: the most that torch had allocated on the GPU (0 without one).
    """

    before: int
    highest: int
    device: int = 0

    @property
    def added(self) -> int:
        """What the block needed on top of what was there."""
        return self.highest - self.before


class peak_memory:  # lower case: it is used as `with peak_memory() as peak:`
    """Sample the process's resident memory while the block runs; may be nested.

    Resident memory is what the operating system counts: weights, activations and
    every library alike. It never falls to what it was, because allocators keep pages.
    """

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        rss = self._process.memory_info().rss
        self.peak = Peak(before=rss, highest=rss)
        self._cuda = _cuda()
        if self._cuda:  # one counter for all: let the blocks around keep what it has
            _note_device_peak(self._cuda)
            _open.append(self.peak)
            self._cuda.reset_peak_memory_stats()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self.peak

    def __exit__(self, *exception) -> None:
        self._stop.set()
        if threading.current_thread() is not self._thread:  # garbage collection runs
            self._thread.join()  # in any thread, in this one too
        self._look()
        if self._cuda:
            _note_device_peak(self._cuda)
            _open.remove(self.peak)

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        rss = self._process.memory_info().rss
        self.peak.highest = max(self.peak.highest, rss)


def release() -> None:
    """Give memory that is free already back to the system.

    glibc keeps what was freed in pieces of many sizes, a gigabyte after a training
    whose batches differ in length. Elsewhere than on Linux this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


_open: list[Peak] = []


def _note_device_peak(cuda) -> None:
    for peak in _open:
        peak.device = max(peak.device, cuda.max_memory_allocated())


def _cuda():
    """torch.cuda when torch is loaded and uses a GPU; never loads torch for it."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda if torch.cuda.is_initialized() else None
