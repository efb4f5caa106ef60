"""Tuning the last stages of MobileNetV2, and the pair that notebook 11 takes over."""

from types import SimpleNamespace

import pytest
import torch

from microbudget import shrinking, tail_tuning
from microbudget.finetuned import FlowerNet
from microbudget.models import mobilenet
from microbudget.models.vision import Preprocess

SCALE = Preprocess((0.5,) * 3, (0.5,) * 3, 32)


@pytest.fixture
def net(home):
    torch.manual_seed(0)
    model = mobilenet.mobilenet_v2(4, pretrained=False).eval()
    mobilenet.compute_like_pretrained(model)  # as the course's own weights do
    return FlowerNet(model, SimpleNamespace(classes=tuple("abcd")), SCALE)


def pictures(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=generator).to(torch.uint8)


def test_frozen_part_and_tail_are_the_model(net):
    model = tail_tuning.folded(net.model)
    (seen,) = tail_tuning.maps(model, 11, [pictures()], SCALE)
    with torch.inference_mode():
        whole = model(SCALE(pictures()))
        again = tail_tuning.tail(model, 11).eval()(seen)
    torch.testing.assert_close(again, whole, rtol=1e-2, atol=1e-4)


def test_only_the_tail_learns(net):
    model = tail_tuning.folded(net.model)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    (seen,) = tail_tuning.maps(model, 16, [pictures()], SCALE)
    tail_tuning.fine_tune(model, 16, seen, torch.arange(6) % 4, epochs=1)
    changed = {
        n for n, w in model.state_dict().items() if not torch.equal(w, before[n])
    }
    assert any(name.startswith("classifier") for name in changed)
    assert all(
        name.startswith("classifier") or int(name.split(".")[1]) >= 16
        for name in changed
    )


def test_the_stored_pair_comes_back(net):
    whole = tail_tuning.folded(net.model)
    kept = {n: torch.arange(w) < w // 2 for n, w in shrinking.widths(whole).items()}
    slim = shrinking.remove(whole, kept)
    tail_tuning.store(net, whole, slim)
    for mine, theirs in zip((whole, slim), tail_tuning.pair(net), strict=True):
        x = SCALE(pictures())
        with torch.inference_mode():
            torch.testing.assert_close(theirs(x), mine(x), rtol=1e-3, atol=1e-5)


def test_another_network_has_another_pair(net):
    first = tail_tuning._paths(net)
    with torch.no_grad():
        net.model.classifier[1].bias += 1
    assert set(first).isdisjoint(tail_tuning._paths(net))
