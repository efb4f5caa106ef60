"""Same seed, same image, however and in whatever company it is made."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

from microbudget.data.synthetic.flowers import generate_images, render
from microbudget.data.synthetic.flowers.species import species, species_name


def pixels(k=0, seed=0, image_seed=0, size=48):
    rng = np.random.default_rng(image_seed)
    return np.asarray(render(species(k, seed), rng, size))


def bar() -> tqdm:
    return tqdm(file=io.StringIO())


def contents(folder):
    """Every file below `folder`, hidden ones too: relative path -> bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_same_seeds_give_the_same_species_and_image():
    assert species(7, 3) == species(7, 3)
    assert np.array_equal(pixels(7, 3, 1), pixels(7, 3, 1))


@pytest.mark.parametrize("other", [{"k": 8}, {"seed": 4}, {"image_seed": 2}])
def test_another_species_seed_or_image_looks_different(other):
    reference = {"k": 7, "seed": 3, "image_seed": 1}
    first, second = pixels(**reference), pixels(**(reference | other))
    assert np.abs(first.astype(int) - second).mean() > 2


def test_names_are_unique_and_sisters_share_their_genus():
    for seed in (0, 1):
        names = [species_name(k, seed) for k in range(1000)]
        assert len(set(names)) == 1000
        words = [name.split() for name in names]
        assert all(len(pair) == 2 and pair[0].istitle() for pair in words)
        genera = [genus for genus, _ in words]
        assert genera[::4] == genera[1::4] == genera[2::4] == genera[3::4]
        assert len(set(genera)) == 250
    assert species_name(0, 0) != species_name(0, 1)


def test_sisters_share_their_shape_and_differ_in_markings():
    for genus in range(10):
        sisters = [species(4 * genus + i) for i in range(4)]
        shapes = {(s.breadth, s.belly, s.point, s.whorls, s.centre) for s in sisters}
        assert len(shapes) == 1
        markings = {(s.eye, s.tips, s.veins, s.spots, s.bands) for s in sisters}
        assert len(markings) == 4


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(0, 10_000),
    seed=st.integers(0, 2**32),
    image_seed=st.integers(0, 2**32),
    size=st.integers(32, 72),
)
def test_any_flower_can_be_drawn(k, seed, image_seed, size):
    image = pixels(k, seed, image_seed, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5  # something is to be seen ...
    assert 4 < image.mean() < 252  # ... and it is exposed tolerably


def test_an_image_does_not_depend_on_how_many_are_asked_for(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    generate_images(few, 1, {"val": 1}, 32, 0, bar())
    generate_images(many, 2, {"train": 1, "val": 2}, 32, 0, bar())
    first, second = contents(few), contents(many)
    assert list(first) == ["val/000/000.jpg"]
    assert first.items() < second.items()
    assert len(second) == len(set(second.values())) == 6  # no two images alike
    with Image.open(many / "train/001/000.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


def test_one_process_and_two_write_the_same_files(tmp_path, monkeypatch):
    for workers in ("1", "2"):
        monkeypatch.setenv("MICROBUDGET_THREADS", workers)
        progress = bar()
        generate_images(tmp_path / workers, 2, {"train": 2, "val": 1}, 32, 0, progress)
        assert (progress.n, progress.total) == (6, 6)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_courses_images_are_what_they_were():
    """The committed results belong to these images, whatever draws them."""
    image = render(species(7), np.random.default_rng(0))
    red = np.asarray(image.resize((3, 2), Image.Resampling.BOX), int)[..., 0]
    assert np.abs(red - [[116, 147, 153], [106, 132, 82]]).max() <= 1
