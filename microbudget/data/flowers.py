"""The flowers: Oxford 102 Flowers where they are, else the generated garden.

Two layouts are read. torchvision's (``jpg/``, ``imagelabels.mat``, ``setid.mat``,
the official splits), and one folder a class: ``SPLIT/CLASS/PICTURE``, which is what
the garden writes and what pictures of your own need.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import assets
from ..core import settings
from ..core.errors import DataError
from .images import SUFFIXES, LazyImages, load_images
from .synthetic import flowers

REAL, GENERATED = "flowers-102", "synthetic-flowers"
_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


@dataclass(frozen=True)
class Split:
    """Pictures of one split: ``paths[i]`` shows class ``labels[i]``.

    Attributes:
        labels: int64 tensor (pictures,), from 0.
    """

    name: str
    paths: tuple[Path, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, size: int) -> torch.Tensor:
        """All pictures, decoded: uint8 (pictures, 3, size, size)."""
        return load_images(self.paths, size, f"decoding {self.name}")

    def lazy_images(self, size: int) -> LazyImages:
        """The same, decoded a batch at a time as features are extracted."""
        return LazyImages(self.paths, size)

    def per_class(self, n: int, seed: int = 0) -> torch.Tensor:
        """Indices of ``n`` random pictures of every class; more ``n`` only adds.

        Raises:
            DataError: a class has fewer than ``n``.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in range(int(self.labels.max()) + 1):
            own = torch.nonzero(self.labels == label).flatten()
            if len(own) < n:
                raise DataError(
                    f"Class {label} has {len(own)} pictures in {self.name}; "
                    f"{n} were asked for. Ask for fewer, or add pictures."
                )
            chosen.append(own[torch.randperm(len(own), generator=generator)[:n]])
        return torch.cat(chosen)


@dataclass(frozen=True)
class Flowers:
    """A set of flower pictures with its splits and the classes' names."""

    name: str
    train: Split
    val: Split
    test: Split | None
    classes: tuple[str, ...]
    generated: bool
    card: str
    official: bool = False

    @property
    def is_course_data(self) -> bool:
        """Whether the course's claims were checked on these; not on your own."""
        return self.generated or self.official

    @property
    def size(self) -> int:
        """Pixels a side that suit these pictures: the garden is drawn at 160."""
        return 160 if self.generated else 224

    def describe(self) -> str:
        """One plain sentence on what the reader is about to see."""
        what = f"your own pictures of {len(self.classes)} classes"
        if self.generated:
            what = f"GENERATED pictures of {len(self.classes)} invented species"
        elif self.official:
            what = f"real photographs of {len(self.classes)} classes"
        test = f", {len(self.test)} test" if self.test else ""
        return f"{what}: {len(self.train)} train, {len(self.val)} validation{test}"


def load(folder: str | Path | None = None) -> Flowers:
    """The flowers of this profile, or of a folder of your own.

    Order: ``folder``; ``MICROBUDGET_DATA/flowers-102``; in profile ``full`` the
    official download; else the generated garden.

    Raises:
        DataError: the folder holds no flowers in a known layout, a class is empty, a
            label file doesn't fit.
        AssetError: nothing here and nothing can be fetched.
    """
    if folder is not None:
        return _read(Path(folder), name=Path(folder).name, card=f"{folder}")
    here = settings.load()
    has_real = here.profile == "full" or assets.locate(REAL) is not None
    name = REAL if has_real else GENERATED
    asset = assets.get(name)
    return _read(assets.fetch(name), name, asset.card(), generated=not has_real)


def _read(folder: Path, name: str, card: str, generated: bool = False) -> Flowers:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    official = any((folder / f).is_file() for f in ("setid.mat", "imagelabels.mat"))
    if official:
        splits, classes = _read_torchvision_layout(folder)
    else:
        splits, classes = _read_class_folders(folder)
    if generated:
        classes = tuple(flowers.species_name(k) for k in range(len(classes)))
    if not (official or generated):
        card = f"pictures of your own, from the folder {folder.name}"
    return Flowers(
        name,
        splits["train"],
        splits["val"],
        splits.get("test"),
        classes,
        generated,
        card,
        official,
    )


def _read_torchvision_layout(folder: Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    labels = _mat(folder / "imagelabels.mat", "labels") - 1
    pictures = folder / "jpg"
    if not pictures.is_dir():
        raise DataError(
            f"{folder} has label files but no folder jpg/. Unpack 102flowers.tgz there."
        )
    import torchvision

    classes = tuple(torchvision.datasets.Flowers102.classes)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{folder / 'imagelabels.mat'} has labels {labels.min() + 1} to "
            f"{labels.max() + 1}; Flowers-102 has 1 to {len(classes)}. It is another "
            "data set's file: download it again."
        )
    splits = {}
    for split, key in _SPLITS.items():
        ids = _mat(folder / "setid.mat", key)
        if ids.min() < 1 or ids.max() > len(labels):
            raise DataError(
                f"setid.mat names picture {ids.max()}, imagelabels.mat has "
                f"{len(labels)} labels: the two don't belong together."
            )
        paths = [pictures / f"image_{i:05d}.jpg" for i in ids]
        if split == "test" and not all(path.is_file() for path in paths):
            continue  # train and validation alone are enough for the course
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(paths)} {split} pictures are missing from "
                f"{pictures} (the first: {missing[0].name}). "
                "Unpack 102flowers.tgz again."
            )
        splits[split] = Split(split, tuple(paths), torch.from_numpy(labels[ids - 1]))
    return splits, classes


def _mat(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path} is missing. Download it again.")
    try:
        values = loadmat(path, squeeze_me=True, variable_names=[key])[key]
        return np.atleast_1d(values).astype(np.int64)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(
            f"{path} is not Flowers-102's {path.name} "
            f"({type(error).__name__}: {error}). Download it again."
        ) from error


def _read_class_folders(folder: Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    present = [split for split in _SPLITS if (folder / split).is_dir()]
    for split in ("train", "val"):
        if split not in present:
            raise DataError(
                f"{folder} has no {split}/ folder. Expected either Flowers-102 "
                "(jpg/, imagelabels.mat, setid.mat) or train/CLASS/ and val/CLASS/ "
                "with pictures."
            )
    classes = _class_names(folder / "train")
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'} needs at least two classes (folders).")
    splits = {}
    for split in present:
        names = _class_names(folder / split)
        if unknown := sorted(set(names) - set(classes)):
            raise DataError(
                f"{folder / split} has classes train/ lacks: {unknown[:4]}."
            )
        paths, labels = [], []
        for label, name in enumerate(classes):
            own = sorted(
                path
                for path in (folder / split / name).glob("*")
                if path.suffix.lower() in SUFFIXES
            )
            if not own and split == "train":
                raise DataError(
                    f"Class {name!r} has no pictures in {folder / split}. "
                    "Add some, or remove the folder."
                )
            paths += own
            labels += [label] * len(own)
        if not paths:
            raise DataError(f"{folder / split} holds no pictures.")
        splits[split] = Split(split, tuple(paths), torch.tensor(labels))
    return splits, classes


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
