"""Flowers: Oxford 102 Flowers where they are, else the synthetic flowers.

Two layouts are read. The official one (``jpg/``, ``imagelabels.mat``, ``setid.mat``),
and one folder a class: ``SPLIT/CLASS/IMAGE``, which is what the synthetic flowers have
and what images of your own need.
"""

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import assets
from ..core.errors import DataError
from .images import SUFFIXES, load_images
from .synthetic.flowers.species import species_name

REAL, GENERATED = "flowers-102", "synthetic-flowers"
_KINDS = {
    REAL: "real photographs of {} classes",
    GENERATED: "GENERATED images of {} invented species",
    "": "your own images of {} classes",
}
_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}  # keys of setid.mat


@dataclass(frozen=True)
class Split:
    """Images of one split: ``paths[i]`` shows class ``labels[i]``.

    Attributes:
        labels: int64 tensor (images,), from 0.
    """

    name: str
    paths: tuple[Path, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, size: int) -> torch.Tensor:
        """All images, decoded: uint8 (images, 3, size, size)."""
        return load_images(self.paths, size, f"decoding {self.name}")

    def per_class(self, n: int, seed: int = 0) -> torch.Tensor:
        """Indices of ``n`` random images of every class; more ``n`` only adds.

        Raises:
            DataError: a class has fewer than ``n``.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in range(int(self.labels.max()) + 1):
            own = torch.nonzero(self.labels == label).flatten()
            if len(own) < n:
                raise DataError(
                    f"Class {label} has {len(own)} images in {self.name}; "
                    f"{n} were asked for. Ask for fewer, or add images."
                )
            chosen.append(own[torch.randperm(len(own), generator=generator)[:n]])
        return torch.cat(chosen)


@dataclass(frozen=True)
class Flowers:
    """A set of flower images with its splits and the classes' names."""

    name: str
    train: Split
    val: Split
    test: Split | None
    classes: tuple[str, ...]
    card: str
    source: str  # its name in the catalog; empty for images of your own

    @property
    def generated(self) -> bool:
        return self.source == GENERATED

    @property
    def is_course_data(self) -> bool:
        """Whether the course's claims were checked on these; not on your own."""
        return bool(self.source)

    @property
    def size(self) -> int:
        """Pixels a side that suit these images: synthetic ones are drawn at 160."""
        return 160 if self.generated else 224

    def describe(self) -> str:
        """One plain sentence on what the reader is about to see."""
        what = _KINDS[self.source].format(len(self.classes))
        test = f", {len(self.test)} test" if self.test else ""
        return f"{what}: {len(self.train)} train, {len(self.val)} validation{test}"


def load(folder: str | Path | None = None) -> Flowers:
    """The flowers of this profile, or of a folder of your own.

    Order: ``folder``; ``MICROBUDGET_DATA/flowers-102``; in profile ``full`` the
    official download; else the synthetic flowers.

    Raises:
        DataError: the folder holds no flowers in a known layout, a class is empty, a
            label file can't be read.
        AssetError: nothing here and nothing can be fetched.
    """
    folder = Path(folder) if folder else assets.find_real(REAL)
    if folder is None:
        folder, source = assets.fetch(GENERATED), GENERATED
    else:
        source = REAL if (folder / "setid.mat").is_file() else ""
    read = _read_official if source == REAL else _read_class_folders
    splits, classes = read(folder)
    if source == GENERATED:
        classes = [species_name(number) for number in range(len(classes))]
    card = f"images of your own, from the folder {folder.name}"
    if not source and (others := _passed_over(folder)):
        card += f" (not images, passed over: {others})"
    if source:
        card = assets.get(source).card()
    return Flowers(
        source or folder.name, splits["train"], splits["val"], splits.get("test"),
        tuple(classes), card, source,
    )  # fmt: skip


def _read_official(folder: Path) -> tuple[dict[str, Split], list[str]]:
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    try:
        labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"]
        ids = loadmat(folder / "setid.mat", squeeze_me=True)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(
            f"{folder} needs Flowers-102's imagelabels.mat and setid.mat "
            f"({type(error).__name__}: {error}). Download both again."
        ) from error
    splits = {}
    for split, key in _SPLITS.items():
        own = np.atleast_1d(ids[key])
        paths = [folder / "jpg" / f"image_{i:05d}.jpg" for i in own]
        missing = [path for path in paths if not path.is_file()]
        if missing and split == "test":
            continue  # train and validation alone are enough for the course
        if missing:
            raise DataError(
                f"{len(missing)} of {len(paths)} {split} images are missing from "
                f"{folder / 'jpg'} (the first: {missing[0].name}). "
                "Unpack 102flowers.tgz there."
            )
        numbers = torch.from_numpy(labels[own - 1].astype(np.int64) - 1)  # from 0
        splits[split] = Split(split, tuple(paths), numbers)
    return splits, Flowers102.classes


def _read_class_folders(folder: Path) -> tuple[dict[str, Split], list[str]]:
    present = [split for split in _SPLITS if (folder / split).is_dir()]
    if present[:2] != ["train", "val"]:
        raise DataError(
            f"{folder} needs the folders train/ and val/, with one folder of images "
            "for each class in them (or Flowers-102's jpg/, imagelabels.mat and "
            "setid.mat)."
        )
    splits, classes = {}, list(_folders(folder / "train"))
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'} needs at least two classes (folders).")
    for split in present:
        found = _folders(folder / split)
        if unknown := set(found) - set(classes):
            raise DataError(
                f"{folder / split} has classes train/ lacks: {sorted(unknown)[:4]}."
            )
        paths, labels = [], []
        for name, own in found.items():
            images = _files(own, is_image=True)
            if not images and split == "train":
                raise DataError(
                    f"{own} holds no images. These are read: {', '.join(SUFFIXES)}."
                )
            paths += images
            labels += [classes.index(name)] * len(images)
        if not paths:
            raise DataError(f"{folder / split} holds no images.")
        splits[split] = Split(split, tuple(paths), torch.tensor(labels))
    return splits, classes


def _folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by name, sorted; hidden ones (.ipynb_checkpoints) aside.

    A Mac writes ö as o and two dots, others as one character: names are compared in
    the latter form.
    """
    found = {
        unicodedata.normalize("NFC", path.name): path
        for path in folder.iterdir()
        if path.is_dir() and not _is_hidden(path.name)
    }
    return dict(sorted(found.items()))


def _files(folder: Path, *, is_image: bool) -> list[Path]:
    """Images below a folder, or all that isn't one; hidden files aside."""
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            if not _is_hidden(name) and (is_image == name.lower().endswith(SUFFIXES)):
                found.append(Path(root, name))
    return found


def _is_hidden(name: str) -> bool:
    # ._NAME is what macOS writes beside NAME on disks of other systems
    return name.startswith(".") or name == "__MACOSX"


def _passed_over(folder: Path) -> str:
    """Such as "4 .heic, 1 .txt", of the files that aren't read."""
    suffixes = Counter(
        path.suffix.lower() or "without a suffix"
        for path in _files(folder, is_image=False)
        if path.parent != folder
    )
    return ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common())
