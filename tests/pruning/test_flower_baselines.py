"""Fine-tuning the last stages of MobileNetV2, and the pair that notebook 11 uses."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from microbudget import pruning
from microbudget.models import mobilenet
from microbudget.models.vision import Preprocess
from microbudget.pruning import flower_baselines
from microbudget.training import features
from microbudget.training.baselines import FlowerNet

SCALE = Preprocess((0.5,) * 3, (0.5,) * 3, 32)


@dataclass
class Split:
    """A data set's split with its images in memory instead of files."""

    own: torch.Tensor
    labels: torch.Tensor

    def images(self, size):
        return self.own


def images(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=generator).to(torch.uint8)


@pytest.fixture
def net(home):
    torch.manual_seed(0)
    model = mobilenet.mobilenet_v2(4, pretrained=False).eval()
    mobilenet.compute_like_pretrained_(model)  # as the course's own weights do
    train = Split(images(), torch.arange(6) % 4)
    flowers = SimpleNamespace(classes=tuple("abcd"), train=train)
    return FlowerNet(model, flowers, SCALE)


def logits(model):
    with torch.inference_mode():
        return model(SCALE(images()))


def test_cached_inputs_and_last_stages_are_the_model(net):
    model = flower_baselines.folded(net.model)
    inputs = features.extract(model.features[:11], images(), SCALE)
    with torch.inference_mode():
        again = flower_baselines.last_stages(model, 11).eval()(inputs)
    torch.testing.assert_close(again, logits(model), rtol=1e-2, atol=1e-4)


def test_only_the_last_stages_are_trained(net):
    model = flower_baselines.folded(net.model)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    inputs = features.extract(model.features[:16], images(), SCALE)
    flower_baselines.fine_tune_(model, 16, inputs, torch.arange(6) % 4, epochs=1)
    changed = {
        n for n, w in model.state_dict().items() if not torch.equal(w, before[n])
    }
    heads = {name for name in changed if name.startswith("classifier")}
    assert heads
    assert all(int(name.split(".")[1]) >= 16 for name in changed - heads)


def test_crops_are_other_views_of_the_same_images():
    x = images()
    crops = flower_baselines.mirrored_crops(x)
    assert crops.shape == x.shape
    assert crops.dtype == torch.uint8
    assert not torch.equal(crops, x)
    assert torch.equal(crops, flower_baselines.mirrored_crops(x))


@pytest.mark.parametrize("damage", [None, "longer", "smaller"])
def test_what_is_missing_or_damaged_is_made(net, damage):
    """The three networks: made from nothing, then loaded, and made again."""

    def all_three():
        pair = flower_baselines.whole_and_smaller(net)
        return [*pair, flower_baselines.fine_tuned(net)[1]]

    whole, smaller, longer = first = all_three()
    if damage:
        path = flower_baselines.path_of(net, damage)
        path.write_bytes(path.read_bytes()[:-7])
    for mine, theirs in zip(first, all_three(), strict=True):
        torch.testing.assert_close(logits(theirs), logits(mine), rtol=1e-3, atol=1e-4)
    assert not torch.equal(whole.classifier[1].weight, longer.classifier[1].weight)
    widths = pruning.hidden_channels(smaller).values()
    assert sum(widths) < sum(pruning.hidden_channels(whole).values())


def test_another_network_has_another_file(net):
    other = mobilenet.mobilenet_v2(4, pretrained=False)
    first, second = (
        flower_baselines.path_of(n, "whole") for n in (net, replace(net, model=other))
    )
    assert first != second
