"""The networks that chapters start from: trained once, then read; never a pickle."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from microbudget.core import settings
from microbudget.models import mobilenet
from microbudget.training import baselines, features, image_classifier


@pytest.fixture
def own_runs(tmp_path, monkeypatch):
    """The real assets, but an empty folder for what is trained."""
    cache, home = settings.load().cache, tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(cache, target_is_directory=True)
    monkeypatch.setenv("MICROBUDGET_HOME", str(home))
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    return home / "runs" / "finetuned"


def once(model, calls, made_from=1):
    def train():
        calls.append(1)
        nn.init.constant_(model.weight, 3.0)

    baselines._load_or_train("thing", model, train, ["made from", made_from])


def test_trained_once_then_read(own_runs):
    calls: list[int] = []
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    once(first, calls)
    once(second, calls)
    assert calls == [1]
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    once(second, calls, made_from=2)
    assert calls == [1, 1]
    assert len(list(own_runs.iterdir())) == 2


def test_a_damaged_file_is_trained_again(own_runs):
    calls: list[int] = []
    once(nn.Linear(3, 2), calls)
    [path] = own_runs.glob("*")
    path.write_bytes(path.read_bytes()[:40])
    again, read = nn.Linear(3, 2), nn.Linear(3, 2)
    once(again, calls)
    once(read, calls)
    assert len(calls) == 2 and torch.equal(again.bias, read.bias)


def test_the_flower_networks_head_is_the_trained_one(own_runs, tmp_path, monkeypatch):
    """The standardisation that the head was trained behind is folded into it."""
    monkeypatch.setenv("MICROBUDGET_BF16", "0")  # exact: features against the network
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, colour in enumerate(((200, 30, 30), (30, 30, 200))):
            folder = tmp_path / "own" / "flowers-102" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(4):
                noise = rng.integers(0, 50, (64, 64, 3))
                picture = (np.array(colour) + noise).clip(0, 255).astype("uint8")
                Image.fromarray(picture).save(folder / f"{i}.png")
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path / "own"))
    net = baselines.flowers()
    pictures = net.flowers.val.images(net.size)
    logits = image_classifier.predict(net.model, net.preprocess(pictures))
    assert torch.equal(logits.argmax(1), net.flowers.val.labels)
    backbone = mobilenet.mobilenet_v2(2)
    describe = image_classifier.MultiStageFeatures(
        backbone.features, at=(18,), unit=False
    )
    pooled = features.extract(describe, pictures, net.preprocess)
    by_hand = net.model.classifier[1](pooled)
    torch.testing.assert_close(by_hand, logits, rtol=1e-3, atol=1e-3)
    again = baselines.flowers()
    for a, b in zip(net.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
