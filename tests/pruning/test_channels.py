"""MobileNetV2: removed channels compute what masked ones do; refitting repairs."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from microbudget import pruning
from microbudget.core.errors import MicrobudgetError, TrainingError
from microbudget.evaluation.sizes import bytes_on_disk, count_parameters
from microbudget.models import mobilenet
from microbudget.models.vision import Preprocess, fold_batchnorm

SCALE = Preprocess((0.5,) * 3, (0.5,) * 3, 32)


def small_mobilenet(fold=False):
    """Four blocks, two with a residual; batch-norms with statistics and biases."""
    torch.manual_seed(0)
    model = torchvision.models.MobileNetV2(
        num_classes=4, width_mult=0.5,
        inverted_residual_setting=[[1, 8, 1, 1], [3, 16, 2, 2], [4, 32, 2, 2]],
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return fold_batchnorm(model) if fold else model.eval()


def images(n=40, seed=2):
    """Smooth: neighbouring pixels belong together, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, (32, 32), mode="bilinear").to(torch.uint8)


def choice(model, seed, fraction, bypassed=()):
    """Some channels of every block, at least one; none of the bypassed stages'."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, width in pruning.hidden_channels(model).items():
        kept[name] = torch.rand(width, generator=generator) < fraction
        kept[name][:1] = True
    for stage in bypassed:
        kept[f"features.{stage}"] &= False
    return kept


def distance(model, smaller):
    x = SCALE(images(40, seed=8))  # not those it was reconstructed on
    with torch.inference_mode():
        a, b = model.features(x), smaller.features(x)
    return float((a - b).pow(2).mean() / a.var())


def logits(model, n=3):
    with torch.inference_mode():
        return model(SCALE(images(n)))


@hypothesis_settings(max_examples=15)
@given(
    seed=st.integers(0, 999), fraction=st.floats(0, 1), fold=st.booleans(),
    bypassed=st.sampled_from([(), (3,), (3, 5)]),
)  # fmt: skip
def test_removed_channels_compute_what_masked_ones_do(seed, fraction, fold, bypassed):
    model = small_mobilenet(fold)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    kept = choice(model, seed, fraction, bypassed)
    masked = pruning.mask_channels(model, kept)
    removed = pruning.remove_channels(model, kept)
    torch.testing.assert_close(logits(removed), logits(masked), rtol=1e-4, atol=1e-5)
    wanted = {name: int(keep.sum()) for name, keep in kept.items()}
    assert pruning.hidden_channels(removed) == wanted
    assert count_parameters(masked).total == count_parameters(model).total
    for name, tensor in model.state_dict().items():  # the model itself is untouched
        assert torch.equal(tensor, before[name])


def test_a_smaller_model_can_be_trained_folded_and_cut_again():
    model = small_mobilenet()
    smaller = pruning.remove_channels(model, choice(model, 5, 0.5, bypassed=(3,)))
    smaller.train()(SCALE(images(4))).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())
    folded = fold_batchnorm(smaller.eval())
    torch.testing.assert_close(logits(folded), logits(smaller), rtol=1e-3, atol=1e-4)
    again = pruning.remove_channels(smaller, choice(smaller, 4, 0.7, bypassed=(3,)))
    assert count_parameters(again).total < count_parameters(smaller).total


@pytest.mark.parametrize("fold", [False, True])
def test_saved_and_loaded_the_smaller_model_is_the_same(tmp_path, fold):
    torch.manual_seed(0)
    model = mobilenet.mobilenet_v2(5, pretrained=False).eval()
    mobilenet.compute_like_pretrained_(model)
    smaller = pruning.remove_channels(model, choice(model, 6, 0.4, bypassed=(9,)))
    smaller = fold_batchnorm(smaller) if fold else smaller
    path = pruning.save(smaller, tmp_path / "small.safetensors", names=["a", "b"])
    again = pruning.load(path, mobilenet.mobilenet_v2(5, pretrained=False))
    assert again.metadata == {"names": ["a", "b"]}
    torch.testing.assert_close(logits(again), logits(smaller), rtol=1e-3, atol=1e-4)
    assert not again.training
    whole = pruning.save(model, tmp_path / "whole.safetensors")
    assert bytes_on_disk(path) < 0.8 * bytes_on_disk(whole)
    with pytest.raises(MicrobudgetError, match="build the architecture"):
        pruning.load(whole, smaller)
    with pytest.raises(MicrobudgetError, match="build the architecture"):
        pruning.load(path, mobilenet.mobilenet_v2(4, pretrained=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: {"features.99": next(iter(k.values()))}, "Nothing to prune"),
        (lambda k: {n: m[:-1] for n, m in k.items()}, r"expected \d+ booleans"),
        (lambda k: {n: m.float() for n, m in k.items()}, r"expected \d+ booleans"),
        (lambda k: {n: m & False for n, m in k.items()}, "lose everything"),
    ],
)
def test_channel_masks_that_do_not_fit_are_refused(change, message):
    model = small_mobilenet()
    kept = change(choice(model, 0, 0.5))
    for function in (pruning.mask_channels, pruning.remove_channels):
        with pytest.raises(TrainingError, match=message):
            function(model, kept)


def test_reconstruction_repairs_and_importance_chooses_better_than_norms():
    model = small_mobilenet(fold=True)
    widths = pruning.hidden_channels(model)
    importance = pruning.channel_importance(model, images(), SCALE)
    chosen = importance.channels_to_keep(dict.fromkeys(widths, 1.0), 0.5)
    assert sum(int(k.sum()) for k in chosen.values()) <= 0.5 * sum(widths.values())
    found = {}
    by_norm = pruning.largest_norm_channels(model, 0.5)
    for name, kept in (("norms", by_norm), ("importance", chosen)):
        smaller = pruning.remove_channels(model, kept)
        before = distance(model, smaller)
        pruning.reconstruct_channels_(model, smaller, images(), SCALE)
        found[name] = distance(model, smaller)
        assert found[name] < 0.5 * before
    assert found["importance"] < found["norms"]


def test_bypassed_blocks_are_compensated_by_those_before_them():
    model = small_mobilenet(fold=True)
    smaller = pruning.remove_channels(model, choice(model, 2, 0.9, bypassed=(3,)))
    before = distance(model, smaller)
    pruning.reconstruct_channels_(model, smaller, images(), SCALE)
    assert distance(model, smaller) < 0.5 * before
    assert (smaller.features[3].bias == 0).all()


def test_nothing_removed_is_reconstructed_as_it_was():
    model = small_mobilenet(fold=True)
    same = pruning.remove_channels(model, choice(model, 0, 1.1))
    pruning.reconstruct_channels_(model, same, images(), SCALE)
    assert distance(model, same) < 1e-3


def test_blocks_are_dropped_only_when_they_may():
    model = small_mobilenet()
    importance = pruning.channel_importance(model, images(), SCALE)
    widths = pruning.hidden_channels(model)
    costs = {name: 1000.0 if "5" in name else 1.0 for name in widths}
    whole = importance.channels_to_keep(costs, 0.3)
    assert all(keep.any() for keep in whole.values())
    dropped = importance.channels_to_keep(costs, 0.02, block_cost=1.0)
    assert not dropped["features.5"].any()
    pruning.remove_channels(model, dropped)


def test_the_importance_is_of_all_images():
    """Images that differ little end the pass: the scale must not be theirs alone."""
    model, x = small_mobilenet(), images(64)
    x[32:] = x[32:] // 32 + 100
    last, first = (
        pruning.channel_importance(model, order, SCALE).errors
        for order in (x, x.flip(0))
    )
    for name, errors in last.items():  # [-1]: all channels removed
        torch.testing.assert_close(errors[-1], first[name][-1], rtol=0.05, atol=0)


def test_costs_fall_with_the_map_and_need_no_image():
    costs = pruning.channel_costs(small_mobilenet(), 32)
    first, *_, last = costs.values()
    assert costs.keys() == pruning.hidden_channels(small_mobilenet()).keys()
    assert first > 4 * last > 0
