"""Peak memory of a block of code.

Linux itself keeps the highest resident size of a process, and begins anew when told to:
as exact as its own counting, and no work. (It is then also what ``getrusage`` calls the
process's ``ru_maxrss``.) Elsewhere a thread looks now and then; a shorter spike can be
missed, and on two busy cores the looking slows a training down.
"""

import contextlib
import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERVAL = 0.01  # seconds between looks, where the kernel doesn't do it
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(eq=False)
class Peak:
    """Memory during a block, in bytes.

    Attributes:
        before: resident memory of the process when the block began.
        highest: the highest resident memory seen in it.
        device: the most that torch had allocated on the GPU (0 without one).
        exact: whether the system keeps it, not a thread that looks.
    """

    before: int
    highest: int
    device: int = 0
    exact: bool = False

    @property
    def added(self) -> int:
        """What the block needed on top of what was there."""
        return self.highest - self.before


class peak_memory:  # lower case: it is used as `with peak_memory() as peak:`
    """The process's highest resident memory while the block runs; may be nested.

    Resident memory is what the operating system counts: weights, activations and
    every library alike. It never falls to what it was, because allocators keep pages.
    """

    def __enter__(self) -> Peak:
        self._process, self._thread, cuda = psutil.Process(), None, _cuda()
        with _lock:
            rss = self._process.memory_info().rss
            self.peak = Peak(before=rss, highest=rss)
            _note()  # for the blocks around: the marks begin anew
            self.peak.exact = _reset()
            if cuda is not None:
                cuda.reset_peak_memory_stats()
            _open.append(self.peak)
        if not self.peak.exact:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self.peak

    def __exit__(self, *exception) -> None:
        if self._thread is not None:
            self._stop.set()
            if threading.current_thread() is not self._thread:  # garbage collection
                self._thread.join()  # runs in any thread, in this one too
        self._look()
        with _lock:
            _note()
            _open.remove(self.peak)

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        rss = self._process.memory_info().rss
        self.peak.highest = max(self.peak.highest, rss)


def release_memory() -> None:
    """Give memory that is free already back to the system.

    glibc keeps what was freed in pieces of many sizes, a gigabyte after a training
    whose batches differ in length. Elsewhere than on Linux this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


_open: list[Peak] = []
_lock = threading.RLock()  # garbage collection may end a block while one begins


def _note() -> None:
    """Tell every open block what has been seen since the marks began anew."""
    cuda, mark = _cuda(), _mark()
    for peak in tuple(_open):
        if peak.exact:
            peak.highest = max(peak.highest, mark)
        if cuda is not None:
            peak.device = max(peak.device, cuda.max_memory_allocated())


def _reset() -> bool:
    """Let the kernel's mark begin anew, as Linux since 4.0 does; else False."""
    try:
        _RESET.write_text("5")
    except OSError:  # another system, or a container that forbids it
        return False
    return _mark() > 0


def _mark() -> int:
    """The highest resident size since then, in bytes; 0 where nobody keeps it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM")), 0)


def _cuda():
    """torch.cuda when torch is loaded and uses a GPU; never loads torch for it."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda if torch.cuda.is_initialized() else None
