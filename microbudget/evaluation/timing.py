"""Timing to be trusted: warm up, synchronise, repeat, report median and spread."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_QUICK = 0.05  # seconds: a longer call is hardly affected by what ran before it


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over several."""

    seconds: tuple[float, ...]  # of every measured call, in order

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def __str__(self) -> str:
        low, high = np.percentile(self.seconds, [10, 90])
        return (
            f"{self.median * 1e3:.2f} ms (10–90 %: {low * 1e3:.2f}–{high * 1e3:.2f}, "
            f"{len(self.seconds)} runs)"
        )


def measure_latency(
    function: Callable[[], object],
    *,
    warmup: int = 3,
    repeats: int = 10,
    device: str = "cpu",
) -> Timing:
    """Time ``function`` on an otherwise idle device.

    Args:
        function: what to time, without arguments; prepare its input outside.
        warmup: calls that are not counted (caches, lazy initialisation, compilation).
        repeats: calls that are.
        device: ``cuda`` and ``mps`` run asynchronously: they are waited for before and
            after each call.
    """
    for _ in range(warmup):
        function()
    return Timing(tuple(_time_once(function, device) for _ in range(repeats)))


def measure_in_turn(
    functions: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 3,
    repeats: int = 10,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Time several functions, one call each in every round, without gradients.

    A slow moment of the machine then hits all of them, and their ratios stay fair. A
    quick function is called once more before each call that is timed: the threads of
    the engine that ran before it spin for some milliseconds, on its cores.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    quick: set[str] = set()
    with torch.inference_mode():
        for turn in range(warmup + repeats):
            for name, function in functions.items():
                if name in quick:
                    function()
                took = _time_once(function, device)
                if turn >= warmup:
                    seconds[name].append(took)
                if took < _QUICK:
                    quick.add(name)
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


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
