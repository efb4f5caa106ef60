"""BERT: removed heads and neurons compute what masked ones do; refitting repairs."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from microbudget import pruning
from microbudget.core import settings
from microbudget.core.errors import TrainingError
from microbudget.evaluation.sizes import bytes_on_disk
from microbudget.models.bert import Classifier
from microbudget.pruning.bert import heads_and_neurons


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


def choice(seed, fraction):
    """Heads and neurons to keep, layer by layer."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for width in (4, 32):
        kept = {i: torch.rand(width, generator=generator) < fraction for i in range(3)}
        for keep in kept.values():
            keep[seed % width] = True
        found.append(kept)
    return found


@hypothesis_settings(max_examples=15)
@given(
    seed=st.integers(0, 999), fraction=st.floats(0, 1),
    kind=st.sampled_from(["bert", "roberta"]),
)  # fmt: skip
def test_removed_heads_and_neurons_compute_what_masked_ones_do(seed, fraction, kind):
    model, (ids, present, _) = small_classifier(kind=kind), batches()[0]
    heads, neurons = choice(seed, fraction)
    masked = pruning.mask_heads_and_neurons(model, heads, neurons)
    removed = pruning.remove_heads_and_neurons(model, heads, neurons)
    with torch.inference_mode():
        torch.testing.assert_close(
            removed(ids, present), masked(ids, present), rtol=1e-4, atol=1e-5
        )
    assert heads_and_neurons(removed) == {
        "heads": [int(k.sum()) for k in heads.values()],
        "neurons": [int(k.sum()) for k in neurons.values()],
    }


def test_importance_is_the_gradient_at_a_gate():
    """Against a finite difference: one example at a time, one head at a time."""
    model, data = small_classifier(), batches(2)
    found = pruning.gate_importance(model, data)
    assert found.heads.shape == (3, 4)
    assert found.neurons.shape == (3, 32)
    layer, size, step = pruning.encoder_layers(model)[1], 6, 2e-3
    weight, slopes = layer.attention.output.dense.weight.data, []
    for head in range(4):
        columns = slice(head * size, (head + 1) * size)
        kept, losses = weight.clone(), []
        for factor in (1 + step, 1 - step):
            weight[:, columns] = kept[:, columns] * factor
            with torch.no_grad():
                each = [
                    F.cross_entropy(model(i, p), y, reduction="none")
                    for i, p, y in data
                ]
            losses.append(torch.cat(each))
            weight.copy_(kept)
        slopes.append(((losses[0] - losses[1]) / (2 * step)).abs().mean())
    wanted = F.normalize(torch.stack(slopes), dim=0).float()
    torch.testing.assert_close(found.heads[1], wanted, rtol=0.02, atol=0.01)


@given(removed=st.integers(0, 12), seed=st.integers(0, 99))
def test_the_least_important_are_removed_but_every_layer_keeps_one(removed, seed):
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed))
    kept = torch.stack(list(pruning.keep_most_important(scores, removed).values()))
    assert int((~kept).sum()) == removed
    assert (kept.sum(1) >= 1).all()


def test_reconstruction_repairs_the_encoder():
    model, data = small_classifier(), batches(40)
    heads = pruning.keep_most_important(pruning.gate_importance(model, data).heads, 3)
    neurons = pruning.keep_irreplaceable_neurons(model, data, 16)
    smaller = pruning.remove_heads_and_neurons(model, heads, neurons)

    def distance(other):
        with torch.inference_mode():
            gaps = [
                (model.embed(i, p) - other.embed(i, p)).pow(2).mean()
                for i, p, _ in batches(6, seed=11)
            ]
        return float(torch.stack(gaps).mean())

    before = distance(smaller)
    pruning.reconstruct_encoder_(model, smaller, data)
    assert distance(smaller) < 0.5 * before
    assert all(int((~keep).sum()) == 16 for keep in neurons.values())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_saved_and_loaded_the_smaller_encoder_is_the_same(tmp_path, kind):
    model, (ids, present, _) = small_classifier(kind=kind), batches()[0]
    model.add_head("other", 2)
    smaller = pruning.remove_heads_and_neurons(model, *choice(4, 0.5))
    path = pruning.save(smaller, tmp_path / "e.safetensors")
    again = pruning.load(path, model)
    assert torch.equal(again(ids, present), smaller(ids, present))
    whole = pruning.save(model, tmp_path / "w.safetensors")
    assert bytes_on_disk(path) < bytes_on_disk(whole)


@pytest.mark.parametrize(
    ("heads", "neurons", "message"),
    [
        ({3: torch.ones(4, dtype=torch.bool)}, {}, "Nothing to prune in 3"),
        ({0: torch.ones(5, dtype=torch.bool)}, {}, "expected 4 booleans"),
        ({}, {0: torch.ones(32)}, "expected 32 booleans"),
        ({0: torch.zeros(4, dtype=torch.bool)}, {}, "lose everything"),
        ({}, {2: torch.zeros(32, dtype=torch.bool)}, "lose everything"),
    ],
)
def test_masks_that_do_not_fit_are_refused(heads, neurons, message):
    for function in (pruning.mask_heads_and_neurons, pruning.remove_heads_and_neurons):
        with pytest.raises(TrainingError, match=message):
            function(small_classifier(), heads, neurons)
