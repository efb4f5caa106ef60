"""Any image file becomes upright RGB, or an error that names it."""

import numpy as np
import pytest
import torch
from PIL import Image

from microbudget.core.errors import DataError
from microbudget.data.images import load_images, open_image


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
    return Image.fromarray(np.stack([blocks, blocks[::-1], blocks[:, ::-1]], -1))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("P", "png"), ("1", "png"),
        ("LA", "png"), ("RGBA", "png"), ("YCbCr", "jpg"), ("RGB", "webp"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, photo, mode, suffix):
    path = tmp_path / f"x.{suffix}"
    photo.convert(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    assert image.size == (64, 48)
    if mode in ("RGB", "CMYK", "RGBA", "YCbCr"):
        difference = np.asarray(image, int) - np.asarray(photo, int)
        assert np.abs(difference).mean() < 12


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(10, 10)
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels = np.asarray(open_image(tmp_path / "deep.png"))
    assert np.abs(pixels[..., 0].astype(int) - values // 257).max() <= 1


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert np.asarray(open_image(tmp_path / "glass.png")).min() == 255


def test_the_cameras_orientation_is_applied(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    photo.save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == (48, 64)


@pytest.mark.parametrize("keep", [0, 10, 300, 600])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_a_truncated_image_is_named(tmp_path, photo, suffix, keep):
    path = tmp_path / f"cut.{suffix}"
    photo.effect_spread(40).save(path)  # noise: a file of some kilobytes
    assert path.stat().st_size > keep
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"cut.{suffix}"):
        open_image(path)


def test_one_bad_file_among_many_is_named(tmp_path, photo):
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        photo.save(path)
    paths[5].write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"5\.png can't be read as an image"):
        load_images(paths, 32)
    paths[5].unlink()
    with pytest.raises(DataError, match=r"5\.png can't be read as an image"):
        load_images(paths, 32)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_images_come_in_order_in_any_mode_of_torch(tmp_path, mode):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        image = Image.new("RGB", (72, 24))  # of which the centre is kept
        image.paste((i * 20, 0, 0), (24, 0, 48, 24))
        image.save(path)
    with mode():
        images = load_images(paths, 24, "decoding")
    assert images.shape == (12, 3, 24, 24)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 23].tolist() == [i * 20 for i in range(12)]


def test_damaged_notes_of_a_camera_dont_cost_the_image(tmp_path):
    """A wrongly typed resolution and width beside a sound orientation mark."""
    for tag, value in ((282, b"\x0a\x00"), (256, b"\x02\x00")):
        exif = b"II*\0\x08\0\0\0\x02\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
        exif += tag.to_bytes(2, "little") + value + b"\x01\0\0\0abc\0\0\0\0\0"
        path = tmp_path / f"{tag}.jpg"
        Image.new("RGB", (30, 20), "red").save(path, exif=b"Exif\0\0" + exif)
        assert open_image(path).size == (20, 30)  # turned upright


def test_floats_keep_their_order_from_image_to_image(tmp_path):
    levels = []
    for name, value in (("a", 0.25), ("b", 0.5), ("c", 100.0), ("d", 200.0)):
        pixels = np.full((4, 4), value, np.float32)
        Image.fromarray(pixels).save(tmp_path / f"{name}.tif")
        levels.append(open_image(tmp_path / f"{name}.tif").getpixel((0, 0))[0])
    assert levels == [64, 128, 100, 200]
    pixels[0, 0] = np.nan
    Image.fromarray(pixels).save(tmp_path / "nan.tif")
    with pytest.raises(DataError, match=r"nan\.tif .*no numbers"):
        open_image(tmp_path / "nan.tif")
