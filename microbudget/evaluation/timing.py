"""Timing to be trusted: in turn, warmed up, repeated, with median and range."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import EvaluationError

_QUICK = 0.05  # seconds: a longer call is hardly affected by what ran before it


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over several.

    Attributes:
        seconds: of every measured call, in order.
        first: of the very first call, which isn't among them.
    """

    seconds: tuple[float, ...]
    first: float = float("nan")

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return (
            f"{self.median * 1e3:.1f} ms (range {low * 1e3:.1f} to {high * 1e3:.1f}, "
            f"{len(self.seconds)} calls)"
        )


@dataclass(frozen=True)
class Ratio:
    """How many times as fast something is: the median over rounds.

    Attributes:
        low, high: its 95 % interval, from the order of the rounds' own ratios.
    """

    median: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """Such as "2.4 times as fast (95 % interval 2.1 to 2.6)", or neither."""
        ratios, word = (self.median, self.low, self.high), "fast"
        if self.median < 1:
            ratios, word = (1 / self.median, 1 / self.high, 1 / self.low), "slow"
        median, low, high = ratios
        digits = 1 if median >= 1.5 else 2
        off = max(abs(self.low - 1), abs(self.high - 1))
        if off < 0.05:
            return f"equally fast, to within {max(off, 0.01):.0%}"
        if self.low <= 1 <= self.high:
            spread = f"{self.low:.2f} to {self.high:.2f} times as fast"
            return f"about as fast, as far as these rounds can tell ({spread})"
        return (
            f"{median:.{digits}f} times as {word} "
            f"(95 % interval {low:.{digits}f} to {high:.{digits}f})"
        )


def speedup(slow: Timing, fast: Timing) -> Ratio:
    """How many times as fast ``fast`` is, of two that were measured in turn.

    The interval of a median by order statistics: of n rounds, the k-th smallest and the
    k-th largest ratio, k as large as leaves 2.5 % outside on each side (all rounds,
    below six of them).
    """
    from scipy import stats

    rounds = np.sort(np.array(slow.seconds) / np.array(fast.seconds))
    k = max(0, int(stats.binom.ppf(0.025, len(rounds), 0.5)) - 1)
    return Ratio(float(np.median(rounds)), float(rounds[k]), float(rounds[-1 - k]))


@dataclass(frozen=True)
class FreshProcess:
    """Something to be timed in a process of its own, which nothing else has warmed.

    Attributes:
        factory: a function that can be imported; it returns the call to be timed.
        arguments: the factory's, by name; they are sent to the process.
    """

    factory: Callable[..., Callable[[], object]]
    arguments: Mapping = field(default_factory=dict)


def measure_in_turn(
    functions: Mapping[str, Callable[[], object] | FreshProcess],
    *,
    warmup: int = 3,
    repeats: int = 10,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Time several things, one call each in every round, without gradients.

    A slow moment of the machine then hits all of them, and their ratios stay fair. A
    quick function is called once more before each call that is timed: the threads of
    the engine that ran before it spin for some milliseconds, on its cores.

    Args:
        functions: name -> what to time, without arguments (prepare its input outside),
            or a ``FreshProcess``.
        warmup: rounds that are not counted (caches, lazy initialisation, compilation).
        repeats: rounds that are.
        device: ``cuda`` and ``mps`` run asynchronously: they are waited for before and
            after each call.

    Raises:
        EvaluationError: what was to be timed in a process of its own failed there.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        timers = {
            name: stack.enter_context(_started(function, device))
            for name, function in functions.items()
        }
        for _ in range(warmup + repeats):
            for name, timer in timers.items():
                before = seconds[name][-1:]
                if before and before[0] < _QUICK and len(timers) > 1:
                    timer()
                seconds[name].append(timer())
    return {
        name: Timing(tuple(found[warmup:]), found[0]) for name, found in seconds.items()
    }


def measure_latency(
    function: Callable[[], object] | FreshProcess,
    *,
    warmup: int = 3,
    repeats: int = 10,
    device: str = "cpu",
) -> Timing:
    """``measure_in_turn`` of a single thing."""
    one = {"": function}
    return measure_in_turn(one, warmup=warmup, repeats=repeats, device=device)[""]


@contextmanager
def _started(function, device: str):
    """A timer: called without arguments, it makes one call and returns its seconds."""
    if not isinstance(function, FreshProcess):
        yield lambda: _time_once(function, device)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs, device))
    process.start()
    theirs.close()

    def timer() -> float:
        try:
            ours.send("once more")
            answer = ours.recv()
        except (EOFError, OSError) as error:
            raise EvaluationError("The process that was to be timed ended.") from error
        if isinstance(answer, str):
            raise EvaluationError(f"In a process of its own: {answer}")
        return answer

    try:
        yield timer
    finally:
        ours.close()
        process.terminate()
        process.join()


def _serve(job: FreshProcess, orders, device: str) -> None:
    """In the process of its own: build the call, make one for each order."""
    import torch

    from ..core import settings

    torch.set_num_threads(settings.load().threads)
    call = None
    try:
        with torch.inference_mode():
            while orders.recv():
                call = call or job.factory(**job.arguments)
                orders.send(_time_once(call, device))
    except EOFError:  # nothing more to be timed
        return
    except Exception as error:  # it is raised again where it was asked for
        orders.send(f"{type(error).__name__}: {error}")


def _time_once(function: Callable[[], object], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device != "cpu":
        import torch

        getattr(torch, device.split(":")[0]).synchronize()
