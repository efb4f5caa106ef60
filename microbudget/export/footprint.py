"""What an engine needs by itself: a fresh process imports it, and runs a model once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import EngineError


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


def measure_footprint(
    path: str | os.PathLike,
    engine: str,
    shapes: Sequence[tuple[tuple[int, ...], str]],
    threads: int,
) -> Footprint:
    """Run a model once in a new Python, and see what that took.

    Args:
        path: as for ``load_session``: a file or folder.
        shapes: (shape, numpy dtype) of each input; ones are fed.

    Raises:
        EngineError: the engine is missing there, or it fails.
    """
    task = json.dumps([str(path), engine, shapes, threads])
    command = [sys.executable, "-m", __name__, task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise EngineError(f"{engine} failed in a process of its own: {reason}")
    return Footprint(*json.loads(done.stdout.splitlines()[-1]))


def _run_once(path: str, engine: str, shapes: Sequence, threads: int) -> list:
    """The footprint's fields, in the new process; torch is imported only as engine."""
    import numpy as np
    import psutil

    from ..evaluation.memory import peak_memory
    from . import packages, sessions

    inputs = [np.ones(shape, dtype) for shape, dtype in shapes]
    with peak_memory() as peak:
        started = time.perf_counter()
        packages.load(engine)
        imported = time.perf_counter()
        engine_bytes = psutil.Process().memory_info().rss
        session = sessions.load_session(path, engine, threads)
        loaded = time.perf_counter()
        session(*inputs)
        answered = time.perf_counter()
    return [
        imported - started, session.load_s, answered - loaded, engine_bytes,
        peak.highest,
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_run_once(*json.loads(sys.argv[1]))))
