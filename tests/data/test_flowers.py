"""Both layouts are read, and a wrong one says what is wrong."""

import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from microbudget.core.errors import DataError
from microbudget.data import flowers


def make_class_folders(root, classes=("a", "b"), per_class=3, splits=("train", "val")):
    for split in splits:
        for k, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                image = Image.new("RGB", (40, 40), (k * 80, i * 20, 0))
                image.save(folder / f"{i}.png")
    return root


def make_official(root, labels=(1, 2, 1, 2), train=(1, 2), valid=(3, 4), test=(9,)):
    (root / "jpg").mkdir(parents=True)
    for i in range(1, len(labels) + 1):
        Image.new("RGB", (40, 30), (i * 20, 0, 0)).save(root / f"jpg/image_{i:05d}.jpg")
    labels = np.array([*labels, *[1] * 8])
    savemat(root / "imagelabels.mat", {"labels": labels})
    splits = {"trnid": train, "valid": valid, "tstid": test}
    savemat(root / "setid.mat", {k: np.array([v]) for k, v in splits.items()})
    return root


def test_class_folders(tmp_path):
    data = flowers.load(make_class_folders(tmp_path))
    assert data.classes == ("a", "b")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.images(32).shape == (6, 3, 32, 32)
    assert not data.generated
    assert not data.is_course_data
    assert data.describe() == "your own images of 2 classes: 6 train, 6 validation"
    assert "of your own" in data.card
    assert data.test is None


def test_the_official_layout(tmp_path):
    data = flowers.load(make_official(tmp_path))
    assert data.classes[:2] == ("pink primrose", "hard-leaved pocket orchid")
    assert len(data.classes) == 102
    assert data.is_course_data
    assert data.train.labels.tolist() == [0, 1]
    assert data.val.paths[0].name == "image_00003.jpg"
    assert data.test is None  # its images are not there


def test_more_images_per_class_only_adds(tmp_path):
    split = flowers.load(make_class_folders(tmp_path, per_class=6)).train
    few, many = split.per_class(2), split.per_class(4)
    assert set(few.tolist()) < set(many.tolist())
    assert torch.bincount(split.labels[many]).tolist() == [4, 4]
    assert not torch.equal(split.per_class(2, seed=1), few)
    with pytest.raises(DataError, match="Class 0 has 6 images in train; 7"):
        split.per_class(7)


def refused(folder, says: str) -> None:
    with pytest.raises(DataError, match=says):
        flowers.load(folder)


def test_folders_that_wont_do(tmp_path):
    refused(tmp_path / "absent", "needs the folders train/ and val/")
    single = make_class_folders(tmp_path / "single", classes=("a",))
    refused(single, "at least two classes")
    no_val = make_class_folders(tmp_path / "no val", splits=("train",))
    refused(no_val, "needs the folders train/ and val/")
    (no_val / "val" / "a").mkdir(parents=True)
    refused(no_val, "val holds no images")
    more = make_class_folders(tmp_path / "more")
    (more / "val" / "c").mkdir()
    refused(more, r"classes train/ lacks: \['c'\]")
    (more / "train" / "c").mkdir()
    refused(more, "train/c holds no images. These are read")


def test_a_class_that_validation_lacks_keeps_the_numbers(tmp_path):
    make_class_folders(tmp_path, classes=("a", "b", "c"))
    shutil.rmtree(tmp_path / "val" / "b")
    assert flowers.load(tmp_path).val.labels.tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_a_damaged_label_file(tmp_path, name):
    make_official(tmp_path)
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"imagelabels\.mat and setid\.mat.*Download"):
        flowers.load(tmp_path)


def test_missing_images_are_counted(tmp_path):
    make_official(tmp_path)
    (tmp_path / "jpg" / "image_00004.jpg").unlink()
    with pytest.raises(DataError, match="1 of 2 val images are missing"):
        flowers.load(tmp_path)


def test_the_default_is_synthetic_and_says_so(monkeypatch):
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    data = flowers.load()
    assert data.generated
    assert data.describe().startswith("GENERATED")
    assert "generated, not photographed" in data.card
    assert len(set(data.classes)) == len(data.classes)
    assert torch.bincount(data.train.labels).unique().tolist() == [10]


def test_a_data_folder_wins_over_the_synthetic_flowers(tmp_path, monkeypatch):
    make_official(tmp_path / "flowers-102")
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path))
    data = flowers.load()
    assert not data.generated
    assert data.name == "flowers-102"


@pytest.mark.full
def test_the_real_flowers():
    data = flowers.load()
    assert not data.generated
    assert len(data.train) == len(data.val) == 1020
    assert torch.bincount(data.train.labels).tolist() == [10] * 102


def test_what_else_lies_in_a_folder(tmp_path):
    """Checkpoints of JupyterLab, what a Mac writes, names in two Unicode forms."""
    folder = make_class_folders(tmp_path / "own")
    before = flowers.load(folder)
    for split, form in (("train", "NFC"), ("val", "NFD")):
        name = unicodedata.normalize(form, "Löwenzahn")
        shutil.copytree(folder / split / before.classes[0], folder / split / name)
        (folder / split / ".ipynb_checkpoints").mkdir()
        (folder / split / name / "._1.png").write_bytes(b"a Mac's notes")
        (folder / split / name / "photo.HEIC").write_bytes(b"x")
    found = flowers.load(folder)
    assert found.classes == ("Löwenzahn", *before.classes)
    assert len(found.val) > len(before.val)
    assert "passed over: 2 .heic" in found.card
