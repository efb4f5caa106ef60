"""What a distillation loss must do, whatever the numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from microbudget.core.errors import TrainingError
from microbudget.training import losses as kd

SHAPES = st.tuples(st.integers(1, 6), st.integers(2, 40))
TEMPERATURES = st.floats(0.5, 8)


def logits(shape, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator)


@given(shape=SHAPES, seed=st.integers(0, 99), temperature=TEMPERATURES)
def test_equal_logits_have_no_divergence(shape, seed, temperature):
    z = logits(shape, seed).requires_grad_()
    loss = kd.soft_target_loss(z, z.detach(), temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert z.grad.abs().max() < 1e-5
    shifted = kd.soft_target_loss(z.detach() + 7.0, z.detach(), temperature)
    assert abs(shifted.item()) < 1e-4  # a constant on all logits changes nothing


@given(shape=SHAPES, seed=st.integers(0, 99), temperature=TEMPERATURES)
def test_parity_with_plain_pytorch(shape, seed, temperature):
    student, teacher = logits(shape, seed), logits(shape, seed + 1)
    reference = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )
    torch.testing.assert_close(
        kd.soft_target_loss(student, teacher, temperature), reference
    )
    assert kd.soft_target_loss(student, teacher, temperature) >= -1e-6


def test_the_square_of_the_temperature_keeps_gradients_their_size():
    """Without T² they would shrink 64-fold from T = 4 to T = 32; so they hardly do.

    For high T the gradient tends to (z - v) / V (Hinton et al. 2015, equation 4).
    """
    student, teacher = logits((200, 30), 1, 1.0), logits((200, 30), 2, 1.0)

    def gradient(temperature):
        z = student.clone().requires_grad_()
        kd.soft_target_loss(z, teacher, temperature).backward()
        return 200 * z.grad

    ratio = gradient(32).norm() / gradient(4).norm()
    assert 0.9 < ratio < 1.1
    a, b = (z - z.mean(-1, keepdim=True) for z in (student, teacher))
    torch.testing.assert_close(gradient(200.0), (a - b) / 30, rtol=0.05, atol=2e-3)
    # The loss itself tends to half the squared distance (section 2.1).
    hot = kd.soft_target_loss(a.double(), b.double(), temperature=200.0)
    torch.testing.assert_close(hot, kd.logit_mse_loss(a, b) / 2, rtol=0.05, atol=2e-3)


@given(seed=st.integers(0, 99), keep=st.lists(st.booleans(), min_size=5, max_size=5))
def test_masked_positions_contribute_nothing(seed, keep):
    mask = torch.tensor([True, *keep]).view(2, 3)
    student, teacher = logits((2, 3, 9), seed), logits((2, 3, 9), seed + 1)
    labels = torch.where(mask, teacher.argmax(-1), kd.IGNORE)
    spoilt = student.clone()
    spoilt[~mask] = torch.tensor([1e4, torch.nan, torch.inf] * 3)
    spoilt.requires_grad_()
    soft = kd.soft_target_loss(spoilt, teacher, mask=mask)
    torch.testing.assert_close(soft, kd.soft_target_loss(student[mask], teacher[mask]))
    hidden = kd.hidden_state_loss(spoilt, teacher, mask)
    torch.testing.assert_close(hidden, F.mse_loss(student[mask], teacher[mask]))
    clean = student.clone().requires_grad_()
    kd.soft_target_loss(clean, teacher, mask=mask).backward()
    assert (clean.grad[~mask] == 0).all()
    hard = kd.pseudo_label_loss(clean, labels)
    expected = F.cross_entropy(student[mask], teacher[mask].argmax(-1))
    torch.testing.assert_close(hard, expected)


@pytest.mark.parametrize("alphas", [(0.8, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("rows", [3, 64])
def test_the_chunked_loss_is_the_plain_one(alphas, rows):
    """Loss and gradient, also when the tokens don't fill the last chunk."""
    n, width, vocabulary = 10, 16, 500
    hidden, weight = logits((n, width), 0), logits((vocabulary, width), 1)
    teacher = logits((n, vocabulary), 5, 2.0)
    labels = teacher.argmax(-1)
    plain = hidden.clone().requires_grad_()
    expected = kd.distillation_loss(plain @ weight.T, teacher, labels, alphas)
    (3 * expected).backward()
    chunked = hidden.clone().requires_grad_()

    def of_chunk(part, chunk):
        own = part @ weight.T
        return kd.distillation_loss(own, teacher[chunk], labels[chunk], alphas)

    loss = kd.chunked_loss(chunked, of_chunk, rows)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected)
    # sums of 500 terms, in another order: how near they come depends on the processor
    torch.testing.assert_close(chunked.grad, plain.grad, rtol=1e-3, atol=5e-5)
    soft = kd.soft_target_loss(hidden @ weight.T, teacher)
    hard = kd.pseudo_label_loss(hidden @ weight.T, labels)
    torch.testing.assert_close(expected.detach(), alphas[0] * soft + alphas[1] * hard)


def test_the_chunked_loss_never_holds_all_logits():
    n, width, vocabulary, rows = 512, 8, 20_000, 32
    hidden, weight = torch.randn(n, width), torch.randn(vocabulary, width)
    labels = torch.zeros(n, dtype=torch.long)

    def of_chunk(part, chunk):
        return kd.pseudo_label_loss(part @ weight.T, labels[chunk])

    with torch.profiler.profile(profile_memory=True) as profile:
        kd.chunked_loss(hidden, of_chunk, rows)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest == 4 * rows * vocabulary  # a chunk's, sixteen times smaller


def test_bad_input_is_a_clear_error():
    z = logits((4, 9))
    with pytest.raises(TrainingError, match="one shape"):
        kd.soft_target_loss(z, z[:, :5])
    for temperature in (0, math.nan):
        with pytest.raises(TrainingError, match="temperature"):
            kd.soft_target_loss(z, z, temperature)
