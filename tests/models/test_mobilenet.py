"""The real MobileNetV2: what Keras computes, number for number."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from microbudget.models import mobilenet
from microbudget.models.vision import Preprocess, fold_batchnorm

GOLDEN = np.load(
    Path(__file__).parents[1] / "golden" / "keras_mobilenet_v2_features.npz"
)


@pytest.fixture(scope="module")
def model():
    return mobilenet.mobilenet_v2(102)


def pixels(size, n=1):
    values = np.random.default_rng(size).integers(0, 256, (n, size, size, 3), np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", GOLDEN.files)
@torch.no_grad()
def test_features_equal_keras(model, size):
    """Keras 3.15.1 on TensorFlow 2.21, even and odd sizes (tests/golden/README.md)."""
    x = mobilenet.preprocess(int(size))(pixels(int(size)))
    features = model.features(x).mean((2, 3))[0]
    expected = torch.from_numpy(GOLDEN[size])
    assert (features - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_torchs_padding_would_be_wrong(model):
    """The trap is real: symmetric padding gives clearly other features."""
    other = torchvision.models.mobilenet_v2(num_classes=102).eval()
    other.load_state_dict(model.state_dict())
    x = mobilenet.preprocess(160)(pixels(160))
    a, b = model.features(x).mean((2, 3)), other.features(x).mean((2, 3))
    assert (a - b).norm() / a.norm() > 0.05


def test_it_is_torchvisions_architecture(model):
    ours, theirs = model.state_dict(), torchvision.models.mobilenet_v2(num_classes=102)
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    backbone = sum(p.numel() for p in model.features.parameters())
    assert backbone == 2_223_872


@torch.no_grad()
def test_folding_changes_nothing_but_rounding(model):
    x = mobilenet.preprocess(96)(pixels(96, 3))
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
    kinds = {type(module).__name__ for module in folded.modules()}
    assert "BatchNorm2d" not in kinds
    assert "BatchNorm2d" in {type(module).__name__ for module in model.modules()}


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(1, 3))
@torch.no_grad()
def test_same_padding_halves_rounding_up(height, width, channels):
    torch.manual_seed(0)
    conv = mobilenet.SamePadConv2d(channels, channels, 3, 2, groups=channels)
    x = torch.randn(1, channels, height, width)
    assert conv(x).shape[-2:] == ((height + 1) // 2, (width + 1) // 2)


@given(st.integers(0, 255))
def test_scaling_is_keras(value):
    x = torch.full((1, 3, 8, 8), value, dtype=torch.uint8)
    scaled = Preprocess((0.5,) * 3, (0.5,) * 3, 8)(x)
    torch.testing.assert_close(scaled, torch.full((1, 3, 8, 8), value / 127.5 - 1))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
    ],
)
def test_preprocessing_refuses_what_it_would_spoil(wrong):
    with pytest.raises(ValueError, match="expected uint8 images"):
        mobilenet.preprocess(8)(wrong)
