"""Speech with its transcripts: real where there is some, else read by a machine.

Two layouts are read. A ``manifest.json`` beside the recordings (a list of
``{"file", "text", "set"}``, which is what the course's own voice writes), and
LibriSpeech's folders (``SPEAKER/CHAPTER/*.flac`` with a ``.trans.txt``).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import assets
from ..core import settings
from ..core.errors import DataError
from . import audio

REAL, GENERATED = "speech", "spoken-sentences"
SETS = ("train", "val", "test")  # of a manifest; any other set is for testing
_VAL = 64  # clips at least, when a set must serve for training and for validation


@dataclass(frozen=True)
class Clip:
    """One recording and what was said.

    Attributes:
        seconds: its length.
    """

    path: Path
    text: str
    seconds: float

    def samples(self) -> np.ndarray:
        """float32 (samples,) at 16,000 a second.

        Raises:
            DataError: the file can't be read, or holds no speech.
        """
        return audio.read(self.path)


@dataclass(frozen=True)
class Speech:
    """Clips to learn from, to choose by, and to be judged by.

    Attributes:
        tests: name -> clips that no training has seen, the main set first. Real
            speech, where there is some, comes before what the machine has read.
        generated: whether the main test set was read by a machine.
        train_is_generated: whether the training set was.
        is_course_data: whether the course's claims were checked on it.
    """

    name: str
    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    tests: dict[str, tuple[Clip, ...]]
    generated: bool
    train_is_generated: bool
    card: str
    is_course_data: bool = True

    @property
    def test(self) -> tuple[Clip, ...]:
        """The main test set."""
        return next(iter(self.tests.values()))

    def describe(self) -> str:
        """Plain sentences on what the reader is about to hear."""
        hours = sum(clip.seconds for clip in self.train) / 3600
        learns = "sentences READ BY A MACHINE (one synthetic voice)"
        learns = learns if self.train_is_generated else "real recordings"
        tests = ", ".join(
            f"{len(clips)} {name} clips ({sum(c.seconds for c in clips):.0f} s)"
            for name, clips in self.tests.items()
        )
        return (
            f"to learn from: {len(self.train)} clips, {hours:.2f} hours, {learns}; "
            f"to be judged by: {tests}"
        )


def evenly_spaced(clips: tuple[Clip, ...], n: int) -> tuple[Clip, ...]:
    """``n`` clips taken evenly from all (all of them when there are fewer)."""
    if n >= len(clips):
        return tuple(clips)
    return tuple(clips[i * len(clips) // n] for i in range(n))


def load(folder: str | Path | None = None) -> Speech:
    """The speech of this profile, or of a folder of your own.

    Order: ``folder``; ``MICROBUDGET_DATA/speech``; in profile ``full`` LibriSpeech;
    else sentences that a small synthetic voice reads. Where a folder has a training
    set but none for validation (or the other way round), whole speakers are set apart
    for the other; with too few clips for that, the folder is for testing only, and
    the training clips are the synthetic voice's.

    Raises:
        DataError: no recordings in a known layout, or a transcript without its file.
        AssetError: nothing here and nothing can be fetched.
    """
    here = settings.load()
    own = Path(folder) if folder is not None else None
    if own is None and (here.profile == "full" or assets.locate(REAL)):
        own = assets.fetch(REAL)
    if own is None:
        spoken = read_folder(assets.fetch(GENERATED))
        card = assets.get(GENERATED).card()
        tests = {"generated": spoken["test"]}
        return Speech(
            GENERATED, spoken["train"], spoken["val"], tests, True, True, card
        )
    sets = read_folder(own)
    if not sets["test"]:
        raise DataError(f"{own} has nothing to test on: only training clips.")
    sets |= _two_of(sets["train"] or sets["val"]) if _one_is_missing(sets) else {}
    card = f"recordings from the folder {own.name}"
    if folder is None and not (own / "manifest.json").is_file():
        card = assets.get(REAL).card()
    tests, learns = {"real": sets["test"]}, sets
    generated = not (sets["train"] and sets["val"])
    if generated:  # too little to learn from: the synthetic voice's clips are borrowed
        learns = read_folder(assets.fetch(GENERATED, "mini"))
        tests["generated"] = learns["test"]
    return Speech(
        own.name, learns["train"], learns["val"], tests, False, generated, card,
        is_course_data=False,
    )  # fmt: skip


def _one_is_missing(sets: dict) -> bool:
    return (
        not (sets["train"] and sets["val"])
        and max(len(sets["train"]), len(sets["val"])) > 2 * _VAL
    )


def _two_of(clips: tuple[Clip, ...]) -> dict[str, tuple[Clip, ...]]:
    """Train and val out of one set, no speaker (folder) in both where that works."""
    speakers: dict[Path, list[Clip]] = {}
    for clip in clips:  # SPEAKER/CHAPTER/file, in LibriSpeech
        speakers.setdefault(clip.path.parent.parent, []).append(clip)
    if len(speakers) < 2:
        return {"train": clips[_VAL:], "val": clips[:_VAL]}
    val: list[Clip] = []
    while len(val) < _VAL and len(speakers) > 1:
        val += speakers.pop(next(iter(speakers)))
    train = [clip for own in speakers.values() for clip in own]
    return {"train": tuple(train), "val": tuple(val)}


def read_folder(folder: Path) -> dict[str, tuple[Clip, ...]]:
    """The clips of a folder by set: train, val, test.

    Raises:
        DataError: neither layout, a damaged manifest, an empty text, a missing file.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    manifest = folder / "manifest.json"
    sets = _manifest(manifest) if manifest.is_file() else _librispeech(folder)
    if not any(sets.values()):
        raise DataError(
            f"{folder} holds no speech. Expected a manifest.json (a list of "
            '{"file": …, "text": …, "set": …}), or LibriSpeech\'s folders with their '
            ".trans.txt files."
        )
    return {name: tuple(clips) for name, clips in sets.items()}


def _manifest(path: Path) -> dict[str, list[Clip]]:
    sets: dict[str, list[Clip]] = {name: [] for name in SETS}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        rows = [(e["file"], e["text"], e.get("set", "test")) for e in entries]
        if not all(isinstance(file, str) for file, _, _ in rows):
            raise TypeError("a file's name that is no text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no manifest of clips ({type(error).__name__}: {error}). It "
            'must be a JSON list of {"file": …, "text": …, "set": …}.'
        ) from error
    for file, text, name in rows:
        clip = _clip(path.parent / file, text)
        sets[name if name in SETS else "test"].append(clip)
    return sets


def _librispeech(folder: Path) -> dict[str, list[Clip]]:
    sets: dict[str, list[Clip]] = {name: [] for name in SETS}
    for transcript in sorted(folder.rglob("*.trans.txt")):
        # LibriSpeech/dev-clean/84/121123/84-121123.trans.txt
        parts = transcript.relative_to(folder).parts
        where = next((s for p in parts for s in SETS if p.startswith(s)), None)
        dev = any(part.startswith("dev-") for part in parts)
        try:
            lines = transcript.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{transcript} is not UTF-8 text ({error}).") from error
        for line in filter(str.strip, lines):
            name, _, text = line.partition(" ")
            files = [transcript.parent / f"{name}{end}" for end in audio.SUFFIXES]
            path = next((file for file in files if file.is_file()), files[0])
            sets[where or ("val" if dev else "test")].append(_clip(path, text))
    return sets


def _clip(path: Path, text: str) -> Clip:
    if not path.is_file():
        raise DataError(
            f"{path} is missing, but there is a transcript of it. Copy the whole "
            "folder again."
        )
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path.name} has an empty transcript.")
    import soundfile

    try:
        seconds = soundfile.info(path).duration  # what a manifest says may be wrong
    except soundfile.SoundFileError as error:
        raise DataError(f"{path.name} can't be read as sound ({error}).") from error
    return Clip(path, text.strip(), float(seconds))
