"""Speech with its transcripts: real where there is some, else synthetic.

Two layouts are read. A ``manifest.json`` beside the recordings (a list of
``{"file", "text", "set"}``, which is what the synthetic speech has), and LibriSpeech's
folders (``SPEAKER/CHAPTER/*.flac`` with a ``.trans.txt``).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import assets
from ..core.errors import DataError
from . import audio
from .files import read_lines, read_text

REAL, GENERATED = "speech", "spoken-sentences"
MANIFEST = "manifest.json"
SETS = ("train", "val", "test")  # of a manifest; any other set is for testing
_FOLDERS = {"train": "train", "val": "val", "dev-": "val"}  # how their names begin
_VAL = 64  # clips at least, when a set must serve for training and for validation


@dataclass(frozen=True)
class Clip:
    """One recording, what was said, and its length in seconds."""

    path: Path
    text: str
    seconds: float

    def samples(self) -> np.ndarray:
        """float32 (samples,) at 16,000 a second."""
        return audio.read(self.path)


@dataclass(frozen=True)
class Speech:
    """Clips for training, for validation, and for testing.

    Attributes:
        tests: name -> clips that no training has seen, the main set first. Real
            speech, where there is some, comes before synthetic speech.
        train_is_generated: whether the training set is synthetic.
        is_course_data: whether the main test set is the course's synthetic one, on
            which its claims were checked.
    """

    name: str
    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    tests: dict[str, tuple[Clip, ...]]
    card: str
    train_is_generated: bool = False
    is_course_data: bool = False

    @property
    def test(self) -> tuple[Clip, ...]:
        """The main test set."""
        return next(iter(self.tests.values()))

    def describe(self) -> str:
        """Plain sentences on what the reader is about to hear."""
        hours = sum(clip.seconds for clip in self.train) / 3600
        machine = "sentences READ BY A MACHINE (one synthetic voice)"
        kind = machine if self.train_is_generated else "real recordings"
        tests = ", ".join(
            f"{len(clips)} {name} clips ({sum(c.seconds for c in clips):.0f} s)"
            for name, clips in self.tests.items()
        )
        return (
            f"training: {len(self.train)} clips, {hours:.2f} hours, {kind}; "
            f"test: {tests}"
        )


def evenly_spaced(items: Sequence, n: int) -> tuple:
    """``n`` of the items, taken evenly from all (all when there are fewer)."""
    n = min(n, len(items))
    return tuple(items[i * len(items) // n] for i in range(n))


def load(folder: str | Path | None = None) -> Speech:
    """The speech of this profile, or of a folder of your own.

    Order: ``folder``; ``MICROBUDGET_DATA/speech``; in profile ``full`` LibriSpeech;
    else the synthetic speech. Where a folder has a training set but none for validation
    (or the other way round), whole speakers are set apart for the other; with too few
    clips for that, the folder is for testing only, and the training clips are
    synthetic.

    Raises:
        DataError: no recordings in a known layout, or a transcript without its file.
        AssetError: nothing here and nothing can be fetched.
    """
    folder = Path(folder) if folder else assets.find_real(REAL)
    if folder is None:
        sets, card = read_folder(assets.fetch(GENERATED)), assets.get(GENERATED).card()
        tests = {"generated": sets["test"]}
        return Speech(GENERATED, sets["train"], sets["val"], tests, card, True, True)
    sets = read_folder(folder)
    if not sets["test"]:
        raise DataError(f"{folder} has nothing to test on: only training clips.")
    card = f"recordings from the folder {folder.name}"
    if folder == assets.locate(REAL) and not (folder / MANIFEST).is_file():
        card = assets.get(REAL).card()
    tests = {"real": sets["test"]}
    one = sets["train"] or sets["val"]
    if len(one) > 2 * _VAL and not (sets["train"] and sets["val"]):
        sets |= _two_of(one)
    borrowed = not (sets["train"] and sets["val"])
    if borrowed:
        sets = read_folder(assets.fetch(GENERATED, "mini"))
        tests["generated"] = sets["test"]
    return Speech(folder.name, sets["train"], sets["val"], tests, card, borrowed)


def _two_of(clips: tuple[Clip, ...]) -> dict[str, tuple[Clip, ...]]:
    """Train and val out of one set, no speaker (folder) in both where that works."""
    speakers = [clip.path.parent.parent for clip in clips]  # SPEAKER/CHAPTER/file
    starts = [i for i in range(1, len(clips)) if speakers[i] != speakers[i - 1]]
    starts = starts or [_VAL]
    end = next((start for start in starts if start >= _VAL), starts[-1])
    return {"train": clips[end:], "val": clips[:end]}


def read_folder(folder: Path) -> dict[str, tuple[Clip, ...]]:
    """The clips of a folder by set: train, val, test."""
    has_manifest = (folder / MANIFEST).is_file()
    found = list(_manifest(folder) if has_manifest else _librispeech(folder))
    if not found:
        raise DataError(
            f"{folder} holds no speech. Expected a manifest.json (a list of "
            '{"file": …, "text": …, "set": …}), or LibriSpeech\'s folders with their '
            ".trans.txt files."
        )
    return {kind: tuple(c for name, c in found if name == kind) for kind in SETS}


def _manifest(folder: Path) -> Iterator[tuple[str, Clip]]:
    try:
        for entry in json.loads(read_text(folder / MANIFEST)):
            name = entry.get("set", "test")
            clip = _clip(folder / entry["file"], entry["text"])
            yield name if name in SETS else "test", clip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / MANIFEST} is no manifest ({type(error).__name__}: {error}). It "
            'must be a JSON list of {"file": …, "text": …, "set": …}.'
        ) from error


def _librispeech(folder: Path) -> Iterator[tuple[str, Clip]]:
    for transcript in sorted(folder.rglob("*.trans.txt")):
        # LibriSpeech/dev-clean/84/121123/84-121123.trans.txt
        parts = transcript.relative_to(folder).parts
        starts = [(part, start) for part in parts for start in _FOLDERS]
        name = next((_FOLDERS[s] for part, s in starts if part.startswith(s)), "test")
        for _, line in read_lines(transcript):
            if line.strip():
                number, _, text = line.partition(" ")
                files = [transcript.parent / f"{number}{end}" for end in audio.SUFFIXES]
                path = next((file for file in files if file.is_file()), files[0])
                yield name, _clip(path, text)


def _clip(path: Path, text: str) -> Clip:
    import soundfile

    if not text.strip():
        raise DataError(f"{path.name} has an empty transcript.")
    try:
        seconds = soundfile.info(path).duration  # what a manifest says may be wrong
    except soundfile.SoundFileError as error:
        raise DataError(
            f"There is a transcript of {path}, but the recording is missing or can't "
            f"be read ({error}). Copy the whole folder again."
        ) from error
    return Clip(path, text.strip(), float(seconds))
