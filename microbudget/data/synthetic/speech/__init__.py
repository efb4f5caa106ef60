"""Synthetic speech: a small text-to-speech model reads the course's sentences.

The sentences in ``texts/`` were written for this course. The voice is hibari-tts's own
(Apache-2.0, a distilled model itself), run on this machine.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ....core import settings

TEXTS = Path(__file__).with_name("texts")
RATE = 16_000
SETS = {"train": ("train_short", "train_long"), "val": ("val",), "test": ("test",)}


def texts(file: str) -> list[str]:
    """The passages of one file, in order: each one sentence or three."""
    return (TEXTS / f"{file}.txt").read_text(encoding="utf-8").splitlines()


def generate_speech(folder: Path, seed: int, progress: tqdm) -> None:
    """Write every passage as a 16 kHz FLAC file, and the manifest last.

    Args:
        seed: of the voice's noise and its pace, passage by passage.
        progress: a bar, moved on as passages are done.
    """
    import soundfile
    import soxr
    from hibari import Hibari

    jobs = [
        (name, i, text)
        for name, files in SETS.items()
        for i, text in enumerate(chain.from_iterable(map(texts, files)))
    ]
    # One voice a thread: its network computes outside Python's interpreter lock.
    own = threading.local()

    def speak(job: tuple[str, int, str]) -> dict:
        if not hasattr(own, "voice"):
            own.voice = Hibari()
        name, i, text = job
        rng = np.random.default_rng([seed, list(SETS).index(name), i])
        pace = round(float(rng.uniform(0.85, 1.2)), 2)
        spoken = own.voice(text, seed=seed + i, speed=pace)
        samples = soxr.resample(spoken, 24_000, RATE)
        path = folder / name / f"{i:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE)
        return {"file": f"{name}/{path.name}", "text": text, "set": name,
                "seconds": round(len(samples) / RATE, 3)}  # fmt: skip

    progress.reset(len(jobs))
    entries = []
    pool = ThreadPoolExecutor(settings.load().threads)
    try:
        for entry in pool.map(speak, jobs):
            entries.append(entry)
            progress.update()
    finally:  # after an interrupt, too: what is left isn't read first
        pool.shutdown(cancel_futures=True)
    (folder / "manifest.json").write_text(json.dumps(entries, indent=0))
