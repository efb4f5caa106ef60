"""The garden: same seed, same picture, however and in whatever company it is made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microbudget.data.synthetic import flowers


def picture(k=0, seed=0, picture_seed=0, size=48):
    rng = np.random.default_rng(picture_seed)
    return np.asarray(flowers.render(flowers.species(k, seed), rng, size))


def contents(folder):
    """Every file below `folder`, hidden ones too: relative path -> bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_same_seeds_give_the_same_species_and_picture():
    assert flowers.species(7, 3) == flowers.species(7, 3)
    assert np.array_equal(picture(7, 3, 1), picture(7, 3, 1))


@pytest.mark.parametrize("other", [{"k": 8}, {"seed": 4}, {"picture_seed": 2}])
def test_another_species_garden_or_picture_looks_different(other):
    reference = {"k": 7, "seed": 3, "picture_seed": 1}
    first, second = picture(**reference), picture(**(reference | other))
    assert np.abs(first.astype(int) - second).mean() > 2


def test_genes_do_not_depend_on_the_picture_drawn_before():
    before = flowers.species(5)
    picture(5)
    assert flowers.species(5) == before


def test_names_are_unique_and_sisters_share_their_genus():
    for seed in (0, 1):
        names = [flowers.species_name(k, seed) for k in range(1000)]
        assert len(set(names)) == 1000
        words = [name.split() for name in names]
        assert all(len(pair) == 2 and pair[0].istitle() for pair in words)
        genera = [genus for genus, _ in words]
        assert genera[::4] == genera[1::4] == genera[2::4] == genera[3::4]
        assert len(set(genera)) == 250
    assert flowers.species_name(0, 0) != flowers.species_name(0, 1)
    assert flowers.species(9, 2).name == flowers.species_name(9, 2)


def test_sisters_share_their_shape_and_differ_in_markings():
    for genus in range(10):
        sisters = [flowers.species(4 * genus + i) for i in range(4)]
        shapes = {(s.breadth, s.belly, s.point, s.whorls, s.centre) for s in sisters}
        assert len(shapes) == 1
        markings = {(s.eye, s.tips, s.veins, s.spots, s.bands) for s in sisters}
        assert len(markings) == 4


def test_picture_is_rgb_of_the_size_asked():
    image = flowers.render(flowers.species(1), np.random.default_rng(0), 57)
    assert image.mode == "RGB"
    assert image.size == (57, 57)


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(0, 10_000),
    seed=st.integers(0, 2**32),
    picture_seed=st.integers(0, 2**32),
    size=st.integers(32, 72),
)
def test_any_flower_can_be_drawn(k, seed, picture_seed, size):
    pixels = picture(k, seed, picture_seed, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 5  # something is to be seen ...
    assert 4 < pixels.mean() < 252  # ... and it is exposed tolerably


@pytest.mark.filterwarnings("error")
def test_shading_raises_no_numerical_warning():
    for k in range(0, 40, 3):
        picture(k, picture_seed=k)


@pytest.mark.parametrize("call", [flowers.species, flowers.species_name])
def test_negative_species_number_is_refused(call):
    with pytest.raises(ValueError, match=">= 0"):
        call(-1)


def test_tiny_picture_is_refused():
    with pytest.raises(ValueError, match="at least 32"):
        flowers.render(flowers.species(0), np.random.default_rng(0), 31)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"species": 0}, "at least 1 species"),
        ({"size": 31}, "at least 32"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"pictures": {"train": -1}}, "must be 0 or more"),
        ({"pictures": {"../away": 1}}, "use train, val, test"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path, arguments, advice
):
    with pytest.raises(ValueError, match=advice):
        flowers.generate_images(tmp_path / "garden", **arguments)
    assert not list(tmp_path.iterdir())


def test_plant_writes_readable_pictures_and_nothing_else(tmp_path):
    wanted = {"train": 2, "val": 1, "test": 0}
    flowers.generate_images(tmp_path, species=2, pictures=wanted, size=32, workers=1)
    files = contents(tmp_path)
    assert sorted(files) == [
        "train/000/000.jpg",
        "train/000/001.jpg",
        "train/001/000.jpg",
        "train/001/001.jpg",
        "val/000/000.jpg",
        "val/001/000.jpg",
    ]
    assert len(set(files.values())) == len(files)  # no two pictures alike
    with Image.open(tmp_path / "train/001/001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


def test_a_picture_does_not_depend_on_how_many_are_asked_for(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    flowers.generate_images(few, species=1, pictures={"val": 1}, size=32, workers=1)
    more = {"train": 1, "val": 2}
    flowers.generate_images(many, species=2, pictures=more, size=32, workers=1)
    first, second = contents(few), contents(many)
    assert list(first) == ["val/000/000.jpg"]
    assert first.items() < second.items()


def test_pool_and_single_process_write_the_same_files(tmp_path):
    seen = []
    for workers in (1, 2):
        flowers.generate_images(
            tmp_path / str(workers),
            species=2,
            pictures={"train": 2, "val": 1},
            size=32,
            workers=workers,
            progress=lambda done, total: seen.append((done, total)),
        )
    alone, pooled = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert len(alone) == 6  # no temporary file is left either
    assert alone == pooled
    for half in (seen[:4], seen[4:]):
        assert [done for done, _ in half] == sorted({done for done, _ in half})
        assert half[-1] == (6, 6)


def test_a_pool_that_cannot_start_is_done_without(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("no semaphores in this container")

    monkeypatch.setattr(flowers.planting, "ProcessPoolExecutor", refuse)
    flowers.generate_images(
        tmp_path, species=2, pictures={"val": 1}, size=32, workers=2
    )
    assert sorted(contents(tmp_path)) == ["val/000/000.jpg", "val/001/000.jpg"]


def test_a_failed_write_leaves_the_old_picture_and_no_draft(tmp_path, monkeypatch):
    flowers.generate_images(
        tmp_path, species=1, pictures={"val": 1}, size=32, workers=1
    )
    before = contents(tmp_path)

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(flowers.planting.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        flowers.generate_images(tmp_path, 1, {"val": 1}, size=32, seed=1, workers=1)
    assert contents(tmp_path) == before
