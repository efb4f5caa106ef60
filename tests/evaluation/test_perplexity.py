"""Perplexity and KL divergence against torch and transformers; how sure they are."""

import math

import numpy as np
import pytest
import tiny_llm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.core.errors import EvaluationError
from microbudget.evaluation.perplexity import (
    PerplexityResult,
    block_standard_error,
    evaluate_perplexity,
    log_probabilities,
    perplexity_ratio,
)

VOCABULARY = 40


def windows(n: int = 5, tokens: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (n, tokens), generator=generator)


def uniform(ids):
    return torch.zeros(*ids.shape, VOCABULARY)


def knowing(ids, bonus: float = 100.0):
    """Sure of every token that comes."""
    return bonus * F.one_hot(ids.roll(-1, 1), VOCABULARY).float()


def random_scorer(seed: int, sharpness: float = 3.0):
    """The logits after a token are a row of a random table."""
    generator = torch.Generator().manual_seed(seed)
    table = sharpness * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    return lambda ids: table[ids]


def test_perplexities_that_are_known():
    def half(ids):  # a half on the right token
        return knowing(ids, math.log(VOCABULARY - 1))

    for scorer, expected in ((uniform, VOCABULARY), (knowing, 1), (half, 2)):
        found = evaluate_perplexity(scorer, windows())
        assert found.perplexity == pytest.approx(expected)


def test_losses_are_torchs_and_their_mean_is_transformers():
    model, ids = tiny_llm.llama(hidden=64), tiny_llm.ids(30, 4)
    found = evaluate_perplexity(lambda ids: model(ids).logits, ids)
    with torch.inference_mode():
        whole = model(ids, labels=ids)
    logits = whole.logits[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(found.losses, expected)
    assert (found.losses.dtype, found.losses.shape) == (torch.float32, (4 * 29,))
    assert found.perplexity == pytest.approx(whole.loss.exp().item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_doesnt_matter(batch_size):
    ours, theirs = random_scorer(0), random_scorer(1)
    original = log_probabilities(theirs, windows(), batch_size)
    torch.testing.assert_close(original, log_probabilities(theirs, windows()))
    found = evaluate_perplexity(ours, windows(), original, batch_size)
    once = evaluate_perplexity(ours, windows(), original, 5)
    for part in ("losses", "divergence", "agrees"):
        torch.testing.assert_close(getattr(found, part), getattr(once, part))


@given(st.integers(0, 2**32), st.floats(0.1, 50), st.floats(0.1, 50))
def test_divergence_is_never_negative_and_zero_to_itself(seed, ours, theirs):
    scorer, other = random_scorer(seed, ours), random_scorer(seed + 1, theirs)
    original = log_probabilities(other, windows())
    found = evaluate_perplexity(scorer, windows(), original)
    assert (found.divergence > -1e-4).all()
    assert found.kl > 0
    same = evaluate_perplexity(other, windows(), original)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.agreement == 1


def test_divergence_is_torchs():
    original = log_probabilities(random_scorer(1), windows())
    found = evaluate_perplexity(random_scorer(0), windows(), original)
    ours = F.log_softmax(random_scorer(0)(windows())[:, :-1], -1)
    expected = F.kl_div(ours, original, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.divergence, expected.flatten())
    agreed = (ours.argmax(-1) == original.argmax(-1)).double().mean().item()
    assert found.agreement == pytest.approx(agreed)
    assert original.shape == (5, 19, VOCABULARY)
    torch.testing.assert_close(original.exp().sum(-1), torch.ones(5, 19))


def test_words_that_are_ruled_out_diverge_by_nothing():
    def masked(ids):
        logits = random_scorer(0)(ids)
        return logits.index_fill(-1, torch.tensor([3]), -math.inf)

    ids = windows().clamp(min=4)
    found = evaluate_perplexity(masked, ids, log_probabilities(masked, ids))
    assert found.kl == pytest.approx(0, abs=1e-6)


def test_what_a_result_says():
    original = log_probabilities(uniform, windows())
    found = evaluate_perplexity(uniform, windows())
    assert str(found) == "perplexity 40.00 (standard error 0.00)"
    says = str(evaluate_perplexity(uniform, windows(), original))
    assert says.endswith("0.00), KL 0.0000 nats, same first choice 100.0%")


def correlated(seed: int, tokens: int = 3200, memory: float = 0.0) -> torch.Tensor:
    """Losses of mean 3 and deviation 1, each alike to the one before."""
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(tokens, generator=generator).tolist()
    losses, last = [], 0.0
    for noise in fresh:
        last = memory * last + math.sqrt(1 - memory**2) * noise
        losses.append(3 + last)
    return torch.tensor(losses)


@pytest.mark.parametrize("memory", [0.0, 0.7])
def test_the_standard_error_is_how_means_deviate(memory):
    draws = [correlated(seed, memory=memory) for seed in range(60)]
    said = np.mean([block_standard_error(losses) for losses in draws])
    truth = np.std([float(losses.mean()) for losses in draws])
    assert said == pytest.approx(truth, rel=0.3)  # 60 draws know it to 10 %
    independent = 1 / math.sqrt(3200)
    if memory:
        assert said > 1.8 * independent  # in long blocks √(1.7 / 0.3) = 2.4 times
    else:
        assert said == pytest.approx(independent, rel=0.05)


def test_the_perplexitys_error_follows_the_slope():
    losses = correlated(0)
    found = PerplexityResult(losses)
    assert found.perplexity == pytest.approx(math.exp(losses.double().mean()))
    up = PerplexityResult(losses + block_standard_error(losses))
    assert found.error == pytest.approx(up.perplexity - found.perplexity, rel=0.02)


def test_a_ratio_is_sharper_than_two_perplexities():
    losses = correlated(0, memory=0.7)
    generator = torch.Generator().manual_seed(9)
    worse = losses + 0.1 + 0.05 * torch.randn(len(losses), generator=generator)
    a, b = PerplexityResult(worse), PerplexityResult(losses)
    ratio, error = perplexity_ratio(a, b)
    assert ratio == pytest.approx(a.perplexity / b.perplexity)
    assert ratio == pytest.approx(math.exp(0.1), abs=3 * error)
    assert error < 0.1 * min(a.error / a.perplexity, b.error / b.perplexity)
    assert perplexity_ratio(b, b) == (1, 0)
    with pytest.raises(EvaluationError, match="63 tokens are too few: read at"):
        block_standard_error(losses[:63])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_answers_with_nan(value):
    def broken(ids):
        logits = uniform(ids)
        logits[-1, 7, 5] = value
        return logits

    with pytest.raises(EvaluationError, match="answered with NaN or infinity"):
        evaluate_perplexity(broken, windows())
