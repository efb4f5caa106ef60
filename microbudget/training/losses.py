"""What a student learns from a teacher: soft targets, hard labels, hidden states.

Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network
(arXiv:1503.02531); for Whisper: Gandhi, von Platen and Rush 2023 (arXiv:2311.00430).
Everywhere n is the number of tokens (or examples) and V the number of classes.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..data.batching import batches, masked_mean

IGNORE = -100  # a label that is padding: PyTorch's own convention
TEMPERATURE = 2.0  # Distil-Whisper's
_TINY = 1e-6


def soft_target_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = TEMPERATURE,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """T²·KL(teacher ‖ student) of the softened distributions, a mean over tokens.

    Hinton et al. 2015, section 2: gradients of softened targets shrink as 1/T², so the
    factor T² keeps them as large as a hard label's whatever the temperature.

    Args:
        student_logits, teacher_logits: (…, V), of one shape.
        mask: bool (…), False where a token is padding and must not count.

    Raises:
        TrainingError: shapes differ, or T ≤ 0.
    """
    _require_one_shape(student_logits, teacher_logits)
    if not temperature > 0:
        raise TrainingError(f"temperature={temperature}: it must be above 0.")
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    kl = (teacher.exp() * (teacher - student)).sum(-1)  # (…)
    mean = kl.mean() if mask is None else masked_mean(kl, mask)
    return temperature**2 * mean


def pseudo_label_loss(
    student_logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with the teacher's transcript, a mean over labels that count.

    Args:
        student_logits: (…, V).
        labels: int64 (…); ``IGNORE`` marks padding.
    """
    flat = student_logits.float().flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE)


def hidden_state_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean squared distance of hidden states (Romero et al. 2015, FitNets, equation 3).

    Args:
        student, teacher: (…, d), of one shape; project the student's first if not.
        mask: bool (…), False where a token is padding.
    """
    return masked_mean((student.float() - teacher.float()).pow(2).mean(-1), mask)


def logit_mse_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor
) -> torch.Tensor:
    """Mean squared distance of the logits as they are.

    For a high temperature, and logits of mean 0 in every row, ``soft_target_loss``
    becomes half of it (Hinton et al. 2015, section 2.1).

    Args:
        student_logits, teacher_logits: (…, V), of one shape.
    """
    _require_one_shape(student_logits, teacher_logits)
    return F.mse_loss(student_logits.float(), teacher_logits.float())


def attention_transfer_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Distance of two attention maps: which tokens' states are large, which small.

    A map is Σ_d |state|² of every token, brought to length 1 (Zagoruyko and Komodakis
    2017, arXiv:1612.03928, equations 1 and 2, with p = 2). There is nothing to project:
    the states may have different widths.

    Args:
        student: (batch, tokens, d). teacher: (batch, tokens, d').
        mask: (batch, tokens), False or 0 where a token is padding.

    Returns:
        The mean over sentences of ‖student's map − teacher's map‖².
    """
    maps = [s.float().pow(2).sum(-1) * mask.float() for s in (student, teacher)]
    ours, theirs = (F.normalize(m, dim=-1) for m in maps)  # (batch, tokens)
    return (ours - theirs).pow(2).sum(-1).mean()


class TopK(NamedTuple):
    """A teacher's likeliest classes, softened: what is worth keeping of its logits.

    Attributes:
        classes: int32 (n, k).
        probabilities: float (n, k) of softmax(logits / T) over *all* classes; their sum
            is below 1, and what is missing is the rest's.
        temperature: T, at which the student must be compared as well.
    """

    classes: torch.Tensor
    probabilities: torch.Tensor
    temperature: float = TEMPERATURE


def top_k(logits: torch.Tensor, k: int, temperature: float = TEMPERATURE) -> TopK:
    """Keep k of V: 32 of 51,864 are 0.1 % of the bytes.

    Args:
        logits: (n, V).
    """
    values, classes = logits.float().topk(k, dim=-1)  # (n, k)
    whole = torch.logsumexp(logits.float() / temperature, dim=-1, keepdim=True)
    probabilities = (values / temperature - whole).exp()
    return TopK(classes.int(), probabilities, temperature)


def soft_target_loss_top_k(student_logits: torch.Tensor, kept: TopK) -> torch.Tensor:
    """``soft_target_loss`` from the teacher's kept classes; all others are one class.

    Lumping classes can only lower a KL divergence (the data-processing inequality), so
    this is a lower bound of the full loss, and equal to it for k = V. Renormalising
    the k instead would be another target: at T = 2 they hold a quarter of the mass.

    Args:
        student_logits: (n, V).
    """
    log_q = F.log_softmax(student_logits.float() / kept.temperature, dim=-1)
    log_q = log_q.gather(-1, kept.classes.long())  # (n, k)
    rest_q = (1 - log_q.exp().sum(-1)).clamp(min=_TINY)  # (n,)
    return kept.temperature**2 * _kl_with_rest(kept, log_q, rest_q).mean()


def _kl_with_rest(
    kept: TopK, log_q: torch.Tensor, rest_q: torch.Tensor
) -> torch.Tensor:
    """Σ p·ln(p/q) over the k kept classes and the rest as one class: (n, k) -> (n,)."""
    p = kept.probabilities.float()
    rest_p = (1 - p.sum(-1)).clamp(min=_TINY)  # (n,)
    kl = (p * (p.clamp(min=_TINY).log() - log_q)).sum(-1)
    return kl + rest_p * (rest_p.log() - rest_q.log())


def fused_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    kept: TopK,
    alphas: tuple[float, float],
    rows: int = 64,
) -> torch.Tensor:
    """α_soft·``soft_target_loss_top_k`` + α_hard·``pseudo_label_loss``, for large V.

    The (n, V) logits of a batch would be its largest tensor by far. Here they are never
    whole in memory: a chunk of rows is projected to logits, its loss and its gradient
    are computed at once while it is in the processor's cache, and only
    d(loss)/d(hidden) is kept. As ``weight`` is frozen, the backward pass needs no more.

    Args:
        hidden: (n, d) of the student, which gets the gradient.
        weight: (V, d) of the vocabulary's projection, frozen; its dtype is computed in.
        labels: int64 (n,), no padding. kept: the teacher's top k.
        alphas: (α_soft, α_hard).
        rows: in a chunk.
    """
    return _FusedLoss.apply(hidden, weight, labels, kept, alphas, rows)


class _FusedLoss(torch.autograd.Function):
    """The forward pass computes the gradient; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, kept, alphas, rows):
        count = len(hidden)
        inputs = hidden.detach().to(weight.dtype)
        gradient = torch.empty_like(inputs)  # (n, d)
        soft = hard = 0.0
        for chunk in batches(count, rows):
            logits = inputs[chunk] @ weight.T  # (rows, V)
            own = kept._replace(
                classes=kept.classes[chunk].long(),
                probabilities=kept.probabilities[chunk].float(),
            )
            chunk_soft, chunk_hard, logits_gradient = _losses_and_gradient_(
                logits, labels[chunk, None], own, *alphas
            )
            soft, hard = soft + chunk_soft, hard + chunk_hard
            gradient[chunk] = logits_gradient @ weight
        ctx.save_for_backward((gradient / count).to(hidden.dtype))
        return (alphas[0] * soft + alphas[1] * hard) / count

    @staticmethod
    def backward(ctx, loss_gradient):
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient, None, None, None, None, None


def _losses_and_gradient_(logits, labels, kept: TopK, alpha_soft, alpha_hard):
    """Both losses of a chunk, summed over rows, and d(their weighted sum)/d(logits).

    In the formulas z are the logits, q = softmax(z/T) is the student's softened
    distribution, s = softmax(z) its plain one, p the teacher's kept probabilities, and
    y the label. The gradients are

        d hard / dz = s − [z is y's]
        d soft / dz = T·(q − p)             for the kept classes,
                      T·(q − rest_p/rest_q·q) for all others, which share one class.

    A chunk of (rows, V) is all that fits into the processor's cache, so no second
    tensor of that size is made where one can be reused: ``logits`` becomes z/T, then
    exp(z/T), then its part of the gradient, each by an in-place operation on the same
    memory. Nothing may read the logits afterwards. The only other (rows, V) tensor is
    exp(z), which is exp(z/T) to the power of T: a power instead of a second
    exponential; it becomes the gradient that is returned.

    Args:
        logits: (rows, V), overwritten.
        labels: int64 (rows, 1). kept: of these rows, its classes as int64.
    """
    T, dtype = kept.temperature, logits.dtype
    # The maximum is subtracted first, so that no exponential can overflow.
    scaled = logits.sub_(logits.amax(-1, keepdim=True)).div_(T)
    scaled_kept = scaled.gather(1, kept.classes).float()  # (rows, k)
    scaled_label = scaled.gather(1, labels).float()  # (rows, 1)
    soft_exp = scaled.exp_()  # q · its sum; z/T is gone from here on
    hard_exp = soft_exp.pow(T)  # s · its sum
    soft_sum = soft_exp.sum(-1, keepdim=True, dtype=torch.float32)
    hard_sum = hard_exp.sum(-1, keepdim=True, dtype=torch.float32)

    hard = (hard_sum.log() - T * scaled_label).sum()
    p = kept.probabilities
    q = soft_exp.gather(1, kept.classes).float() / soft_sum  # (rows, k)
    # The rest is taken from the same rounded numbers as q: were the two rounded apart,
    # a small rest would be nothing but rounding error.
    rest_q = (1 - q.sum(-1, keepdim=True)).clamp(min=_TINY)  # (rows, 1)
    rest_p = (1 - p.sum(-1, keepdim=True)).clamp(min=_TINY)
    log_q = scaled_kept - soft_sum.log()
    soft = T**2 * _kl_with_rest(kept, log_q, rest_q.squeeze(1)).sum()

    # Every class gets the gradient of one that wasn't kept and isn't the label; then
    # the kept classes and the label get what is missing to theirs.
    ratio = rest_p / rest_q  # (rows, 1)
    gradient = hard_exp.mul_((alpha_hard / hard_sum).to(dtype))
    gradient.add_(soft_exp.mul_((alpha_soft * T * (1 - ratio) / soft_sum).to(dtype)))
    missing = alpha_soft * T * (q * ratio - p)
    gradient.scatter_add_(1, kept.classes, missing.to(dtype))
    gradient.scatter_add_(1, labels, torch.full_like(labels, -alpha_hard, dtype=dtype))
    return soft, hard, gradient


def _require_one_shape(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise TrainingError(
            f"The student's {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} must have one shape."
        )
