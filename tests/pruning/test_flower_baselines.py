"""Tuning the last stages of MobileNetV2, and the pair that notebook 11 takes over."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from microbudget.models import mobilenet
from microbudget.models.vision import Preprocess
from microbudget.pruning import flower_baselines
from microbudget.pruning import mobilenet as shrinking
from microbudget.training.baselines import FlowerNet

SCALE = Preprocess((0.5,) * 3, (0.5,) * 3, 32)


@pytest.fixture
def net(home):
    torch.manual_seed(0)
    model = mobilenet.mobilenet_v2(4, pretrained=False).eval()
    mobilenet.compute_like_pretrained(model)  # as the course's own weights do
    return FlowerNet(model, SimpleNamespace(classes=tuple("abcd")), SCALE)


@dataclass
class Split:
    """As a data set's: pictures in memory instead of files."""

    own: tuple[torch.Tensor, ...]
    labels: torch.Tensor

    def pictures(self, size):
        return torch.stack(self.own)


def pictures(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=generator).to(torch.uint8)


def test_frozen_part_and_tail_are_the_model(net):
    model = flower_baselines.folded(net.model)
    (seen,) = flower_baselines.maps(model, 11, [pictures()], SCALE)
    with torch.inference_mode():
        whole = model(SCALE(pictures()))
        again = flower_baselines.tail(model, 11).eval()(seen)
    torch.testing.assert_close(again, whole, rtol=1e-2, atol=1e-4)


def test_only_the_tail_learns(net):
    model = flower_baselines.folded(net.model)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    (seen,) = flower_baselines.maps(model, 16, [pictures()], SCALE)
    flower_baselines.fine_tune(model, 16, seen, torch.arange(6) % 4, epochs=1)
    changed = {
        n for n, w in model.state_dict().items() if not torch.equal(w, before[n])
    }
    assert any(name.startswith("classifier") for name in changed)
    assert all(
        name.startswith("classifier") or int(name.split(".")[1]) >= 16
        for name in changed
    )


def test_what_is_stored_comes_back(net):
    tuned = flower_baselines.folded(net.model)
    kept = {n: torch.arange(w) < w // 2 for n, w in shrinking.widths(tuned).items()}
    slim = shrinking.remove(tuned, kept)
    for name, model in (("whole", tuned), ("longer", tuned), ("smaller", slim)):
        flower_baselines.store(net, model, flower_baselines.path_of(net, name))
    again = (*flower_baselines.pair(net), flower_baselines.whole(net)[1])
    for mine, theirs in zip((tuned, slim, tuned), again, strict=True):
        x = SCALE(pictures())
        with torch.inference_mode():
            torch.testing.assert_close(theirs(x), mine(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("damage", [None, "longer", "smaller"])
def test_what_is_missing_or_damaged_is_made(net, damage):
    """The three networks: made from nothing, then loaded, and made again."""
    taken = Split(tuple(pictures()[i] for i in range(6)), torch.arange(6) % 4)
    net = replace(net, flowers=SimpleNamespace(classes=tuple("abcd"), train=taken))
    first = (*flower_baselines.pair(net), flower_baselines.whole(net)[1])
    if damage:
        path = flower_baselines.path_of(net, damage)
        path.write_bytes(path.read_bytes()[:-7])
    again = (*flower_baselines.pair(net), flower_baselines.whole(net)[1])
    x = SCALE(pictures())
    for mine, theirs in zip(first, again, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(theirs(x), mine(x), rtol=1e-3, atol=1e-4)
    whole, longer = first[0], first[2]
    assert not torch.equal(whole.classifier[1].weight, longer.classifier[1].weight)


def test_another_network_has_another_file(net):
    first = flower_baselines.path_of(net, "whole")
    with torch.no_grad():
        net.model.classifier[1].bias += 1
    assert first != flower_baselines.path_of(net, "whole")
