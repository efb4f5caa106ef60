"""Synthetic flowers: drawn photographs for when Flowers-102 is not at hand.

A species is a handful of traits (``species``); an image is those traits drawn
(``flower``) under random circumstances (``scene``); the data set is many images in
files, written by several processes.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ....core import settings
from .scene import render
from .species import species as traits_of

# The position of a split here is part of its images' seed.
SPLITS = ("train", "val", "test")


def generate_images(
    folder: str | Path,
    species: int,
    images: Mapping[str, int],
    size: int,
    seed: int,
    progress: tqdm,
) -> None:
    """Write JPEG files: folder/split/004/007.jpg is image 7 of species 4.

    An image depends on its seed, species, split and number only: asking for more of
    any changes none that was there.

    Args:
        species: how many.
        images: of each species, by split: ``{"train": 10, "val": 10}``.
        size: pixels a side, at least 32.
        progress: a bar, moved on as images are done.
    """
    jobs = [
        delayed(_generate_species)(Path(folder, split), number, count, size, seed)
        for split, count in images.items()
        for number in range(species)
    ]
    progress.reset(species * sum(images.values()))
    workers = Parallel(settings.load().threads, return_as="generator_unordered")
    for count in workers(jobs):
        progress.update(count)


def _generate_species(split: Path, number: int, count: int, size: int, seed: int):
    """The images of one species in one split; returns how many."""
    folder = split / f"{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    traits = traits_of(number, seed)
    for i in range(count):
        rng = np.random.default_rng([seed, number, SPLITS.index(split.name), i])
        render(traits, rng, size).save(folder / f"{i:03d}.jpg", "JPEG", quality=92)
    return count
