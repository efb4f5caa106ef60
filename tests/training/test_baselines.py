"""The networks that chapters start from: trained once, then read; never a pickle."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from microbudget import features, finetuned, lessons, precision, settings, transfer
from microbudget.models import mobilenet


@pytest.fixture
def own_runs(tmp_path, monkeypatch):
    """The real assets, but an empty folder for what is trained."""
    cache, home = settings.load().cache, tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(cache, target_is_directory=True)
    monkeypatch.setenv("MICROBUDGET_HOME", str(home))
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    return home / "runs" / "finetuned"


def once(model, folder, calls):
    def train():
        calls.append(1)
        nn.init.constant_(model.weight, 3.0)

    return finetuned._once("thing", model, train, ["made from", 1])


def test_trained_once_then_read(own_runs):
    calls: list[int] = []
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    path = once(first, own_runs, calls)
    assert once(second, own_runs, calls) == path
    assert path.parent == own_runs
    assert calls == [1]
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_damaged_file_is_trained_again(own_runs):
    calls: list[int] = []
    path = once(nn.Linear(3, 2), own_runs, calls)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    once(nn.Linear(3, 2), own_runs, calls)
    assert calls == [1, 1]
    assert len(path.read_bytes()) == len(whole)


def test_another_recipe_is_another_file(own_runs):
    one = finetuned._once("thing", nn.Linear(1, 1), lambda: None, [1])
    two = finetuned._once("thing", nn.Linear(1, 1), lambda: None, [2])
    assert one != two


def test_the_flower_networks_head_is_the_trained_one(own_runs, tmp_path, monkeypatch):
    """The standardisation that the head was trained behind is folded into it."""
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
    net = finetuned.flowers()
    pictures = net.flowers.val.pictures(net.size)
    logits = transfer.predict(net.model, net.preprocess(pictures))
    assert torch.equal(logits.argmax(1), net.flowers.val.labels)
    backbone = mobilenet.mobilenet_v2(2)
    describe = transfer.PooledDepths(backbone.features, at=(18,), unit=False)
    pooled = features.extract(describe, pictures, net.preprocess)
    by_hand = net.model.classifier[1](pooled)
    torch.testing.assert_close(by_hand, logits, rtol=1e-3, atol=1e-3)
    again = finetuned.flowers()
    for a, b in zip(net.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("profile", ["mini", "full"])
@pytest.mark.parametrize("bf16", [True, False])
def test_every_notebook_has_sizes_everywhere(profile, bf16, monkeypatch):
    monkeypatch.setenv("MICROBUDGET_PROFILE", profile)
    monkeypatch.setattr(precision, "fast_bf16", lambda _: bf16)
    made = [
        value()
        for name, value in vars(lessons).items()
        if callable(value) and not name.startswith("_") and name.islower()
        and name != "dataclass"
    ]  # fmt: skip
    assert len(made) >= 5
    assert all(dataclasses.is_dataclass(plan) for plan in made)


def test_a_laptop_without_bf16_does_less(monkeypatch):
    plans = []
    for bf16 in (True, False):
        monkeypatch.setattr(precision, "fast_bf16", lambda _, is_=bf16: is_)
        plans.append((lessons.listening(), lessons.fine_tuning()))
    (fast, model), (slow, small) = plans
    assert slow.steps < fast.steps
    assert small.judge < model.judge
