"""Many pictures of many species, written as files by several processes."""

import os
import sys
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ....core import settings
from . import species as genes
from .scene import render

SPLITS = ("train", "val", "test")  # a split's place here is part of its pictures' seed

# A pool may not start: no semaphores, no memory, or inside a daemon process.
POOL_TROUBLE = (OSError, BrokenProcessPool, AssertionError)


def generate_images(
    folder: str | Path,
    species: int = 60,
    pictures: Mapping[str, int] | None = None,
    size: int = 160,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write a garden as JPEG files: folder/split/004/007.jpg is species 4, picture 7.

    species: how many; pictures: how many of each species per split ('train', 'val',
    'test'), 10, 10 and 10 unless told; size: pixels a side; workers: processes (None:
    MICROBUDGET_THREADS; 1: none but this one); progress: called with (pictures done, all).

    A picture depends on its seed, species, split and number only, so asking for more
    of any changes none that was there. Existing files are replaced, whole at all times.
    Raises ValueError on arguments that make no garden, OSError if a file can't be
    written.
    """
    pictures = dict.fromkeys(SPLITS, 10) if pictures is None else dict(pictures)
    if species < 1:
        raise ValueError(f"ask for at least 1 species, not {species}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, not {size}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1 (or None), not {workers}")
    for split, count in pictures.items():
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: use {', '.join(SPLITS)}")
        if count < 0:
            raise ValueError(f"pictures[{split!r}] must be 0 or more, not {count}")

    jobs = [
        (folder, split, k, count, size, seed)
        for split, count in pictures.items()
        for k in range(species)
        if count
    ]
    waiting = dict.fromkeys(jobs)  # a set that keeps its order
    total = species * sum(pictures.values())

    def finished(job) -> None:
        del waiting[job]
        if progress is not None:
            progress(total - sum(count for _, _, _, count, _, _ in waiting), total)

    # Windows allows a pool no more than 61 processes
    workers = min(workers or settings.load().threads, len(jobs), 61)
    if workers > 1:
        try:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                try:
                    with bare_main():
                        futures = {pool.submit(plant_bed, *job): job for job in jobs}
                    for future in as_completed(futures):
                        future.result()
                        finished(futures[future])
                except BaseException:  # an interrupt too: do not draw the rest first
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except POOL_TROUBLE:
            pass  # What is left is drawn below, where real errors show themselves.
    for job in list(waiting):
        plant_bed(*job)
        finished(job)


def plant_bed(folder, split, k, count, size, seed) -> None:
    """Write the pictures of one species in one split (runs in a worker process)."""
    bed = Path(folder, split, f"{k:03d}")
    bed.mkdir(parents=True, exist_ok=True)
    kind = genes.species(k, seed)
    for i in range(count):
        rng = np.random.default_rng([seed, k, SPLITS.index(split), i])
        draft = bed / f".{i:03d}.{os.getpid()}.tmp"
        try:
            render(kind, rng, size).save(draft, "JPEG", quality=92)
            os.replace(draft, bed / f"{i:03d}.jpg")
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def bare_main():
    """Hide the caller's script from processes started meanwhile.

    A spawned process imports the caller's main module first. It need not be a file
    (notebook, stdin), need not guard its top level, and may import torch: an empty
    main module spares the workers all that.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
