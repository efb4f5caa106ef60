"""What an engine needs by itself: a fresh process imports it, and runs a model once."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from ..core import settings
from ..core.errors import EngineError

_TIMEOUT = 300  # seconds


@dataclass(frozen=True)
class Footprint:
    """Of one process.

    Attributes:
        import_s: seconds to import the engine. load_s: to read and optimise the model.
        first_s: of the first answer, before anything is warm.
        engine_bytes: resident memory once the engine is imported.
        peak_bytes: the most until the first answer was there.
    """

    import_s: float
    load_s: float
    first_s: float
    engine_bytes: int
    peak_bytes: int


def measure(
    path, engine: str, shapes: Sequence[tuple[tuple[int, ...], str]], threads: int = 0
) -> Footprint:
    """Run a model once in a new Python, and see what that took.

    Args:
        path: as for ``runtimes.load``: a file or folder.
        shapes: (shape, numpy dtype) of each input; ones are fed.
        threads: default: the course's.

    Raises:
        EngineError: the engine is missing there, or it fails.
    """
    task = {"path": str(Path(path).absolute()), "engine": engine,
            "threads": threads or settings.load().threads,
            "shapes": [[list(shape), dtype] for shape, dtype in shapes]}  # fmt: skip
    command = [sys.executable, "-m", "microbudget.export.footprint", json.dumps(task)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{engine} took more than {_TIMEOUT} s to answer.") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise EngineError(f"{engine} failed in a process of its own: {reason}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def _child(task: dict) -> Footprint:
    """In the new process; it imports torch only when torch is the engine."""
    import numpy as np
    import psutil

    from ..evaluation.memory import peak_memory
    from . import loaders, packages

    inputs = [np.ones(shape, dtype) for shape, dtype in task["shapes"]]
    with peak_memory() as peak:
        times = [time.perf_counter()]
        packages.load(task["engine"])
        times.append(time.perf_counter())
        engine = psutil.Process().memory_info().rss
        path, threads = Path(task["path"]), task["threads"]
        *_, run = loaders.LOADERS[task["engine"]](path, threads)
        times.append(time.perf_counter())
        run(inputs)
        times.append(time.perf_counter())
    spans = [b - a for a, b in pairwise(times)]
    return Footprint(*spans, engine, peak.highest)


if __name__ == "__main__":
    print(json.dumps(asdict(_child(json.loads(sys.argv[1])))))
