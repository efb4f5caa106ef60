"""Removed channels, heads and neurons compute what masked ones do; mending mends."""

import json
import math

import pytest
import torch
import torchvision
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from microbudget.core import settings
from microbudget.core.errors import DataError, MicrobudgetError, TrainingError
from microbudget.evaluation.moments import Moments
from microbudget.evaluation.sizes import bytes_on_disk, count_parameters
from microbudget.models import mobilenet
from microbudget.models.bert import Classifier
from microbudget.models.vision import Preprocess, fold_batchnorm
from microbudget.pruning import (
    bert,
    bert_removal,
    channels,
    mobilenet_reconstruct,
    reconstruction,
)
from microbudget.pruning import mobilenet as shrinking

SCALE = Preprocess((0.5,) * 3, (0.5,) * 3, 32)
few = hypothesis_settings(max_examples=15)


def small_mobilenet(seed=0):
    """Four blocks, two with a residual; batch-norms with statistics and biases."""
    torch.manual_seed(seed)
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
    return model.eval()


def pictures(n=40, seed=2):
    """Smooth: neighbouring pixels belong together, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, (32, 32), mode="bilinear").to(torch.uint8)


def choice(model, seed, share):
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, width in shrinking.widths(model).items():
        keep = torch.rand(width, generator=generator) < share
        keep[0] = True
        kept[name] = keep
    return kept


@few
@given(seed=st.integers(0, 999), share=st.floats(0, 1), fold=st.booleans())
def test_removed_channels_compute_what_masked_ones_do(seed, share, fold):
    model = small_mobilenet()
    model = fold_batchnorm(model) if fold else model
    kept, x = choice(model, seed, share), SCALE(pictures(3))
    masked, removed = shrinking.mask(model, kept), shrinking.remove(model, kept)
    with torch.inference_mode():
        torch.testing.assert_close(removed(x), masked(x), rtol=1e-4, atol=1e-5)
    wanted = {name: int(keep.sum()) for name, keep in kept.items()}
    assert shrinking.widths(removed) == wanted
    assert count_parameters(masked).total == count_parameters(model).total


def bypassed(model, *stages, share=0.5):
    """Some channels of every block, none of these."""
    kept = choice(model, 2, share)
    for stage in stages:
        kept[f"features.{stage}"] &= False
    return kept


@pytest.mark.parametrize("fold", [False, True])
def test_a_residual_block_can_go_as_a_whole(fold, tmp_path):
    model = small_mobilenet()
    model = fold_batchnorm(model) if fold else model
    kept, x = bypassed(model, 3, 5), SCALE(pictures(3))
    masked, removed = shrinking.mask(model, kept), shrinking.remove(model, kept)
    with torch.inference_mode():
        torch.testing.assert_close(removed(x), masked(x), rtol=1e-4, atol=1e-5)
    assert shrinking.widths(removed)["features.3"] == 0
    with pytest.raises(TrainingError, match="no residual"):
        shrinking.remove(model, bypassed(model, 2))


def test_bypassed_blocks_are_mended_by_those_before_them():
    model = small_mobilenet()
    smaller = shrinking.remove(model, bypassed(model, 3, share=0.9))
    before = distance(model, smaller)
    mobilenet_reconstruct.reconstruct(model, smaller, pictures(), SCALE)
    assert distance(model, smaller) < 0.5 * before
    assert (smaller.features[3].bias == 0).all()


def test_a_survey_drops_blocks_only_when_it_may():
    model = small_mobilenet()
    survey = channels.Survey(model, pictures(), SCALE, group=4)
    prices = {n: 1000.0 if "5" in n else 1.0 for n in shrinking.widths(model)}
    whole = survey.keep(prices, 0.3)
    assert all(keep.any() for keep in whole.values())
    dropped = survey.keep(prices, 0.02, fixed=1.0)
    assert not dropped["features.5"].any()
    shrinking.remove(model, dropped)


def test_a_surveys_errors_are_of_all_pictures():
    """Pictures that differ little end the pass: the scale must not be theirs alone."""
    model, x = small_mobilenet(), pictures(64)
    x[32:] = x[32:] // 32 + 100
    last, first = (
        channels.Survey(model, order, SCALE, group=4) for order in (x, x.flip(0))
    )
    for name, errors in last.errors.items():  # [-1]: all channels gone
        torch.testing.assert_close(
            errors[-1], first.errors[name][-1], rtol=0.05, atol=0
        )


def test_zeroed_filters_alone_are_no_removal():
    """The reason for masking the projection's columns: batch-norm's bias is read."""
    model, x = small_mobilenet(), SCALE(pictures(3))
    kept = choice(model, 1, 0.5)
    removed = shrinking.remove(model, kept)
    silenced = small_mobilenet()
    for name, block in shrinking.blocks(silenced).items():
        with torch.no_grad():
            block.conv[0][0].weight[~kept[name]] = 0
            block.conv[1][0].weight[~kept[name]] = 0
    with torch.inference_mode():
        assert (silenced(x) - removed(x)).abs().max() > 1e-3


def test_the_model_itself_is_left_alone_and_removal_can_be_repeated():
    model = small_mobilenet()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    once = shrinking.remove(model, choice(model, 3, 0.7))
    twice = shrinking.remove(once, choice(once, 4, 0.7))
    assert count_parameters(twice).total < count_parameters(once).total
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_smaller_model_can_be_trained_and_folded():
    model = shrinking.remove(small_mobilenet(), choice(small_mobilenet(), 5, 0.5))
    x = SCALE(pictures(4))
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)


def test_saved_and_loaded_the_smaller_model_is_the_same(tmp_path):
    torch.manual_seed(0)
    model = mobilenet.mobilenet_v2(5, pretrained=False).eval()
    mobilenet.compute_like_pretrained(model)
    kept = choice(model, 6, 0.4)
    kept["features.9"] &= False
    smaller = shrinking.remove(model, kept).eval()
    path = shrinking.save(smaller, tmp_path / "small.safetensors", names=["a", "b"])
    again, card = shrinking.load(path)
    x = SCALE(pictures(2))
    with torch.inference_mode():
        assert torch.equal(again(x), smaller(x))
    assert card["names"] == ["a", "b"]
    assert not again.training
    shrinking.save(model, tmp_path / "whole.safetensors")
    whole = bytes_on_disk(tmp_path / "whole.safetensors")
    assert bytes_on_disk(path) < 0.8 * whole
    folded = fold_batchnorm(smaller)
    again, _ = shrinking.load(shrinking.save(folded, path))
    with torch.inference_mode():
        assert torch.equal(again(x), folded(x))
    with pytest.raises(TrainingError, match="card"):
        shrinking.save(model, path, names=model)


def test_files_that_hold_no_smaller_model_are_refused(tmp_path):
    with pytest.raises(MicrobudgetError, match="no model at"):
        shrinking.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(MicrobudgetError, match="is no model of"):
        shrinking.load(tmp_path / "bad.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MicrobudgetError, match="is no model of"):
        shrinking.load(tmp_path / "other.safetensors")
    model = mobilenet.mobilenet_v2(2, pretrained=False)
    shape = {"widths": shrinking.widths(model), "classes": 2, "eps": 1e-3,
             "padding": "strange"}  # fmt: skip
    save_file(
        {"x": torch.zeros(1)}, tmp_path / "pad.safetensors",
        metadata={"card": json.dumps({"shape": shape})},
    )  # fmt: skip
    with pytest.raises(MicrobudgetError, match="pad like strange"):
        shrinking.load(tmp_path / "pad.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: {"features.99": next(iter(k.values()))}, "No block"),
        (lambda k: {n: m[:-1] for n, m in k.items()}, "expected a boolean"),
        (lambda k: {n: m.float() for n, m in k.items()}, "expected a boolean"),
        (lambda k: {n: m & False for n, m in k.items()}, "lose every channel"),
    ],
)
def test_channel_masks_that_do_not_fit_are_refused(change, message):
    model = small_mobilenet()
    kept = change(choice(model, 0, 0.5))
    for function in (shrinking.mask, shrinking.remove):
        with pytest.raises(TrainingError, match=message):
            function(model, kept)


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(TrainingError, match="no inverted residuals"):
        shrinking.blocks(nn.Linear(2, 2))


def distance(model, smaller, n=40):
    x = SCALE(pictures(n, seed=8))  # not those it was mended on
    with torch.inference_mode():
        a, b = model.features(x), smaller.features(x)
    return float((a - b).pow(2).mean() / a.var())


def test_reconstruction_mends_and_a_survey_chooses_better_than_norms():
    model = small_mobilenet()
    survey = channels.Survey(model, pictures(), SCALE, group=2)
    prices = dict.fromkeys(shrinking.widths(model), 1.0)
    chosen = survey.keep(prices, 0.5)
    found = {}
    for name, kept in (("norms", channels.by_norm(model, 0.5)), ("survey", chosen)):
        smaller = shrinking.remove(model, kept)
        before = distance(model, smaller)
        mobilenet_reconstruct.reconstruct(model, smaller, pictures(), SCALE)
        found[name] = before, distance(model, smaller)
        assert found[name][1] < 0.5 * before
    assert found["survey"][1] < found["norms"][1]
    widths = shrinking.widths(model)
    assert sum(int(k.sum()) for k in chosen.values()) <= 0.5 * sum(widths.values())


def test_folded_networks_are_mended_alike():
    model = small_mobilenet()
    kept = choice(model, 12, 0.7)
    found = []
    for one in (model, fold_batchnorm(model)):
        smaller = shrinking.remove(one, kept)
        mobilenet_reconstruct.reconstruct(one, smaller, pictures(), SCALE)
        with torch.inference_mode():
            found.append(smaller(SCALE(pictures(5))))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_views_are_other_pictures_of_the_same():
    x = pictures(6)
    seen = mobilenet_reconstruct.views(x, seed=1)
    assert seen.shape == x.shape
    assert seen.dtype == torch.uint8
    assert torch.equal(seen, mobilenet_reconstruct.views(x, seed=1))
    assert not torch.equal(seen, mobilenet_reconstruct.views(x, seed=2))
    mirrored = (seen.flip(-1).float() - x.float()).abs().mean()
    assert mirrored < (seen.float() - x[torch.arange(6) - 1].float()).abs().mean()


def test_nothing_removed_is_reconstructed_as_it_was():
    model = small_mobilenet()
    whole = {
        n: torch.ones(w, dtype=torch.bool) for n, w in shrinking.widths(model).items()
    }
    same = shrinking.remove(model, whole)
    mobilenet_reconstruct.reconstruct(model, same, pictures(), SCALE, ridge=1e-6)
    assert distance(model, same) < 1e-3


def test_surveys_and_reconstructions_refuse_what_they_cannot_use():
    model = small_mobilenet()
    with pytest.raises(TrainingError, match="give some hundreds"):
        channels.Survey(model, pictures(1), SCALE)
    with pytest.raises(TrainingError, match="share"):
        channels.by_norm(model, 0)
    with torch.no_grad():
        model.features[2].conv[0][0].weight.fill_(math.nan)
    with pytest.raises(DataError, match="NaN"):
        channels.Survey(model, pictures(), SCALE)


def test_costs_fall_with_the_map_and_need_no_picture():
    costs = channels.costs(small_mobilenet(), 32)
    first, *_, last = costs.values()
    assert costs.keys() == shrinking.widths(small_mobilenet()).keys()
    assert first > 4 * last > 0


# --- least squares ------------------------------------------------------------------


def samples(n=200, inputs=9, outputs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(n, inputs, generator=generator) @ mixing + 1.5
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight


def moments_of(*parts):
    rows = torch.cat(parts, 1)
    found = Moments.zeros(rows.shape[1])
    for batch in rows.split(64):
        found.add(batch)
    return found


def covariance_of(x):
    return moments_of(x).matrix(centred=True)


@given(seed=st.integers(0, 200), ridge=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_solution_is_scikit_learns_ridge(seed, ridge):
    x, weight = samples(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    t = x @ weight.T + 0.3 * torch.randn(len(x), 4, generator=generator)
    x, t = x.double(), t.double()
    scale = float(covariance_of(x).diagonal().mean())
    ours, bias = reconstruction.solve(moments_of(x, t), x.shape[1], ridge)
    theirs = Ridge(alpha=ridge * scale * len(x)).fit(x, t)
    torch.testing.assert_close(
        ours, torch.from_numpy(theirs.coef_).float(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        bias, torch.from_numpy(theirs.intercept_).float(), rtol=1e-3, atol=5e-3
    )


@given(seed=st.integers(0, 100), group=st.integers(1, 4))
def test_elimination_predicts_the_error_of_the_refit(seed, group):
    x, weight = samples(seed=seed)
    t = x @ weight.T
    covariance = covariance_of(x)
    order, errors = reconstruction.eliminate(covariance, weight, group, ridge=1e-9)
    assert sorted(order.tolist()) == list(range(9))
    assert (errors.diff() >= 0).all()
    assert float(errors[-1]) == pytest.approx(1, abs=1e-3)
    stay = order[2 * group :]
    if len(stay):
        w, b = reconstruction.solve(moments_of(x[:, stay], t), len(stay), 1e-9)
        left = (t - x[:, stay] @ w.T - b).pow(2).sum() / (t - t.mean(0)).pow(2).sum()
        assert float(errors[2]) == pytest.approx(float(left), abs=2e-3)


def test_a_copy_of_another_input_goes_first():
    x, weight = samples()
    x = torch.cat([x, x[:, :1] + 1e-4 * torch.randn(len(x), 1)], 1)
    weight = torch.cat([weight, 9 * torch.ones(4, 1)], 1)  # however large its weights
    covariance = covariance_of(x)
    order, errors = reconstruction.eliminate(covariance, weight, 1, ridge=1e-7)
    assert order[0] in (0, 9)
    assert errors[1] < 1e-3


def test_elimination_can_stop():
    x, weight = samples()
    covariance = covariance_of(x)
    whole, _ = reconstruction.eliminate(covariance, weight, 2)
    some, errors = reconstruction.eliminate(covariance, weight, 2, most=4)
    assert torch.equal(some[:4], whole[:4])
    assert some[4:].tolist() == sorted(some[4:].tolist())
    assert len(errors) == 3


@given(budget=st.floats(0.3, 1), seed=st.integers(0, 50))
def test_a_budget_is_kept_and_no_better_split_is_missed(budget, seed):
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.rand(4, generator=generator).sort().values for _ in range(3)]
    errors = {str(i): [0.0, *s.cumsum(0).tolist()] for i, s in enumerate(steps)}
    costs = {str(i): [(1.0 + i) * (4 - g) for g in range(5)] for i in range(3)}
    gone = reconstruction.allot(errors, costs, budget)
    total = sum(c[0] for c in costs.values())
    spent = sum(costs[n][g] for n, g in gone.items())
    assert spent <= budget * total + 1e-9
    ours = sum(errors[n][g] for n, g in gone.items())
    for a in range(4):
        for b in range(4):
            for c in range(4):
                other = dict(zip("012", (a, b, c), strict=True))
                cost = sum(costs[n][g] for n, g in other.items())
                if cost <= spent:  # nothing as cheap is better
                    error = sum(errors[n][g] for n, g in other.items())
                    assert error >= ours - 1e-9


@pytest.mark.parametrize("budget", [0, -1, 1.1, math.nan, 0.1])
def test_budgets_that_cannot_be_met_are_refused(budget):
    with pytest.raises(TrainingError, match="budget"):
        reconstruction.allot({"a": [0, 0.1, 0.5, 1]}, {"a": [6, 4, 2, 0]}, budget)


def test_least_squares_refuses_what_makes_no_sense():
    with pytest.raises(DataError, match="No samples"):
        reconstruction.solve(Moments.zeros(5), 3)
    moments = moments_of(torch.randn(9, 5))
    with pytest.raises(TrainingError, match="ridge"):
        reconstruction.solve(moments, 3, ridge=0)
    prior = torch.randn(2, 3)  # a huge ridge leaves the weights at the prior
    weight, _ = reconstruction.solve(moments, 3, 1e9, prior)
    torch.testing.assert_close(weight, prior, rtol=1e-3, atol=1e-3)
    with pytest.raises(TrainingError, match="belong together"):
        reconstruction.eliminate(torch.eye(3), torch.ones(2, 4))
    with pytest.raises(TrainingError, match="group"):
        reconstruction.eliminate(torch.eye(3), torch.ones(2, 3), group=0)
    with pytest.raises(TrainingError, match="NaN"):
        reconstruction.eliminate(math.nan * torch.eye(3), torch.ones(2, 3))
    for some in (math.nan, math.inf):
        weight = torch.ones(2, 3)
        weight[1, 1] = some
        with pytest.raises(TrainingError, match="weights hold NaN"):
            reconstruction.eliminate(torch.eye(3), weight, group=1)


# --- heads and neurons --------------------------------------------------------------


def small_classifier(seed=0, kind="bert"):
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=40, hidden_size=24, num_hidden_layers=3, pad_token_id=0,
        num_attention_heads=4, intermediate_size=32, max_position_embeddings=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = transformers.AutoModel.from_config(
        config, add_pooling_layer=False, attn_implementation="eager"
    )
    for parameter in encoder.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.5 else 0.0, 0.2)
        else:
            nn.init.normal_(parameter, 0.0, 0.3)
    model = Classifier(encoder)
    model.add_head("task", 3)
    return model.eval().to(settings.device())


def batches(n=6, seed=3):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        ids = torch.randint(2, 40, (5, 12), generator=generator)
        present = torch.arange(12) < torch.randint(3, 13, (5, 1), generator=generator)
        ids[~present] = 0
        labels = torch.randint(0, 3, (5,), generator=generator)
        found.append((ids, present.long(), labels))
    return found


def parts(seed, share, heads=4, neurons=32):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for width in (heads, neurons):
        kept = {i: torch.rand(width, generator=generator) < share for i in range(3)}
        for keep in kept.values():
            keep[seed % width] = True
        found.append(kept)
    return found


@few
@given(
    seed=st.integers(0, 999), share=st.floats(0, 1),
    kind=st.sampled_from(["bert", "roberta"]),
)  # fmt: skip
def test_removed_heads_and_neurons_compute_what_masked_ones_do(seed, share, kind):
    model, (ids, present, _) = small_classifier(kind=kind), batches()[0]
    heads, neurons = parts(seed, share)
    masked = bert_removal.mask(model, heads, neurons)
    removed = bert_removal.remove(model, heads, neurons)
    with torch.inference_mode():
        torch.testing.assert_close(
            removed(ids, present), masked(ids, present), rtol=1e-4, atol=1e-5
        )
    assert bert_removal.shape(removed) == {
        "heads": [int(k.sum()) for k in heads.values()],
        "neurons": [int(k.sum()) for k in neurons.values()],
    }


def test_what_is_masked_has_no_effect_any_more():
    model, (ids, present, _) = small_classifier(), batches()[0]
    heads, neurons = parts(1, 0.5)
    masked = bert_removal.mask(model, heads, neurons)
    first = masked(ids, present)
    layer = bert_removal.layers(masked)[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[~neurons[0]] += 3
        gone = (~heads[0]).repeat_interleave(6)
        layer.attention.self.value.weight[gone] += 3
    assert torch.equal(masked(ids, present), first)
    assert not torch.equal(model(ids, present), first)


def test_importance_is_the_loss_felt_at_a_gate():
    """Against a finite difference: one example at a time, one head at a time."""
    model, data = small_classifier(), batches(2)
    found = bert.importance(model, data)
    assert found["heads"].shape == (3, 4)
    assert found["neurons"].shape == (3, 32)
    layer, size, step = bert_removal.layers(model)[1], 6, 2e-3
    weight, felt = layer.attention.output.dense.weight, []
    for head in range(4):
        columns = slice(head * size, (head + 1) * size)
        kept, losses = weight.detach().clone(), []
        for factor in (1 + step, 1 - step):
            with torch.no_grad():
                weight[:, columns] = kept[:, columns] * factor
                each = [
                    F.cross_entropy(model(i, p), y, reduction="none")
                    for i, p, y in data
                ]
                losses.append(torch.cat(each))
                weight.copy_(kept)
        felt.append(((losses[0] - losses[1]) / (2 * step)).abs().mean())
    wanted = F.normalize(torch.stack(felt), dim=0).float()
    torch.testing.assert_close(found["heads"][1], wanted, rtol=0.02, atol=0.01)


@given(gone=st.integers(0, 12), seed=st.integers(0, 99))
def test_the_lowest_go_but_every_layer_keeps_one(gone, seed):
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed))
    kept = bert.lowest(scores, gone)
    rows = torch.stack(list(kept.values()))
    assert int((~rows).sum()) == gone
    assert (rows.sum(1) >= 1).all()


def test_more_than_there_is_cannot_go():
    with pytest.raises(TrainingError, match="can't go"):
        bert.lowest(torch.rand(3, 5), 13)


def test_reconstruction_mends_the_encoder():
    model, data = small_classifier(), batches(40)
    heads = bert.lowest(bert.importance(model, data)["heads"], 3)
    neurons = bert.survey(model, data, gone=16, group=4)
    smaller = bert_removal.remove(model, heads, neurons)

    def distance(other):
        with torch.inference_mode():
            gaps = [
                (model.embed(i, p) - other.embed(i, p)).pow(2).mean()
                for i, p, _ in batches(6, seed=11)
            ]
        return float(torch.stack(gaps).mean())

    before = distance(smaller)
    bert.reconstruct(model, smaller, data)
    assert distance(smaller) < 0.5 * before
    assert all(int((~keep).sum()) == 16 for keep in neurons.values())


def test_a_smaller_encoder_is_saved_with_its_shape(tmp_path):
    model, (ids, present, _) = small_classifier(), batches()[0]
    smaller = bert_removal.remove(model, *parts(4, 0.5))
    path = bert_removal.save(smaller, tmp_path / "e.safetensors", words="fewer")
    again, card = bert_removal.load(small_classifier(seed=9), path)
    assert torch.equal(again(ids, present), smaller(ids, present))
    assert card["words"] == "fewer"
    whole = bert_removal.save(model, tmp_path / "w.safetensors")
    assert bytes_on_disk(path) < bytes_on_disk(whole)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(MicrobudgetError, match="no encoder of the same depth"):
        bert_removal.load(model, tmp_path / "bad.safetensors")
    with pytest.raises(MicrobudgetError, match="no model at"):
        bert_removal.load(model, tmp_path / "none.safetensors")
    with pytest.raises(TrainingError, match="card"):
        bert_removal.save(model, path, words=model)


@pytest.mark.parametrize(
    ("heads", "neurons", "message"),
    [
        ({3: torch.ones(4, dtype=torch.bool)}, None, "No layer 3"),
        ({0: torch.ones(5, dtype=torch.bool)}, None, "expected a boolean"),
        (None, {0: torch.ones(32)}, "expected a boolean"),
        ({0: torch.zeros(4, dtype=torch.bool)}, None, "lose all heads"),
        (None, {2: torch.zeros(32, dtype=torch.bool)}, "lose all neurons"),
    ],
)
def test_parts_that_do_not_fit_are_refused(heads, neurons, message):
    for function in (bert_removal.mask, bert_removal.remove):
        with pytest.raises(TrainingError, match=message):
            function(small_classifier(), heads, neurons)


def test_what_is_no_bert_is_refused_and_so_are_no_examples():
    with pytest.raises(TrainingError, match="no layers like"):
        bert_removal.layers(nn.Linear(2, 2))
    with pytest.raises(TrainingError, match="no examples"):
        bert.importance(small_classifier(), [])
    broken = small_classifier()
    with torch.no_grad():
        broken.heads["task"].weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match="loss is nan"):
        bert.importance(broken, batches(1))
