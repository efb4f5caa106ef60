"""What a student learns from a teacher: soft targets, hard labels, hidden states.

Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network
(arXiv:1503.02531); for Whisper: Gandhi, von Platen and Rush 2023 (arXiv:2311.00430).
Everywhere n is the number of tokens (or examples) and V the number of classes.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..data.batching import batches

IGNORE = -100  # a label that is padding: PyTorch's own convention
TEMPERATURE = 2.0  # Distil-Whisper's

# α_KL, α_PL: the paper's section 4 and its published code swap the two
WEIGHTS = {"paper": (0.8, 1.0), "code": (1.0, 0.8)}


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
        TrainingError: shapes differ, T ≤ 0, or nothing is left to learn from.
    """
    _check(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    kl = (teacher.exp() * (teacher - student)).sum(-1)  # (…)
    return temperature**2 * _mean(kl, mask)


def pseudo_label_loss(
    student_logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with what the teacher wrote, a mean over labels that count.

    Args:
        student_logits: (…, V).
        labels: int64 (…); ``IGNORE`` marks padding.

    Raises:
        TrainingError: shapes don't fit, or every label is padding.
    """
    if student_logits.shape[:-1] != labels.shape:
        raise TrainingError(
            f"Logits {tuple(student_logits.shape)} and labels {tuple(labels.shape)} "
            "don't fit: a label for every row of logits is needed."
        )
    if not (labels != IGNORE).any():
        raise TrainingError("Every label is padding: there is nothing to learn from.")
    flat = student_logits.float().reshape(-1, student_logits.shape[-1])
    return F.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORE)


def hidden_state_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared distance of hidden states (Romero et al. 2015, FitNets, equation 3).

    Args:
        student, teacher: (…, d), of one shape; project the student's first if not.
        mask: bool (…), False where a token is padding.
    """
    _check(student, teacher)
    return _mean((student.float() - teacher.float()).pow(2).mean(-1), mask)


def logit_mse_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor
) -> torch.Tensor:
    """Mean squared distance of the logits as they are.

    For a high temperature, and logits of mean 0 in every row, ``soft_target_loss``
    becomes half of it (Hinton et al. 2015, section 2.1).

    Args:
        student_logits, teacher_logits: (…, V), of one shape.
    """
    _check(student_logits, teacher_logits)
    return (student_logits.float() - teacher_logits.float()).pow(2).mean()


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
    if not student.shape[:-1] == teacher.shape[:-1] == mask.shape:
        raise TrainingError(
            f"States {tuple(student.shape)} and {tuple(teacher.shape)} and the mask "
            f"{tuple(mask.shape)} must be of the same sentences and tokens."
        )
    maps = [s.float().pow(2).sum(-1) * mask.float() for s in (student, teacher)]
    ours, theirs = (F.normalize(m, dim=-1) for m in maps)  # (batch, tokens)
    return (ours - theirs).pow(2).sum(-1).mean()


def combined_loss(
    soft: torch.Tensor, hard: torch.Tensor, weighting: str = "paper"
) -> torch.Tensor:
    """α_KL·soft + α_PL·hard, weighted as in the paper or as in its published code."""
    if weighting not in WEIGHTS:
        raise TrainingError(f"weighting={weighting!r}: use {', '.join(WEIGHTS)}.")
    alpha_kl, alpha_pl = WEIGHTS[weighting]
    return alpha_kl * soft + alpha_pl * hard


@dataclass(frozen=True)
class TopK:
    """A teacher's likeliest classes, softened: what is worth keeping of its logits.

    Attributes:
        classes: int32 (n, k).
        probabilities: float (n, k) of softmax(logits / T) over *all* classes; their sum
            is below 1, and what is missing is the rest's.
    """

    classes: torch.Tensor
    probabilities: torch.Tensor


def top_k(logits: torch.Tensor, k: int, temperature: float = TEMPERATURE) -> TopK:
    """Keep k of V: 32 of 51,864 are 0.1 % of the bytes.

    Args:
        logits: (n, V).
    """
    if not 1 <= k <= logits.shape[-1]:
        raise TrainingError(f"k={k}: there are {logits.shape[-1]} classes.")
    values, classes = logits.float().topk(k, dim=-1)
    whole = torch.logsumexp(logits.float() / temperature, dim=-1, keepdim=True)
    return TopK(classes.int(), (values / temperature - whole).exp())


def soft_target_loss_top_k(
    student_logits: torch.Tensor, kept: TopK, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """``soft_target_loss`` from the teacher's kept classes; all others are one class.

    Lumping classes can only lower a KL divergence (the data-processing inequality), so
    this is a lower bound of the full loss, and equal to it for k = V. Renormalising
    the k instead would be another target: at T = 2 they hold a quarter of the mass.

    Args:
        student_logits: (n, V).
    """
    classes, p = kept.classes.long(), kept.probabilities.float()
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_q = log_q.gather(-1, classes)  # (n, k)
    rest_p = (1 - p.sum(-1)).clamp(min=_TINY)  # (n,)
    rest_q = (1 - log_q.exp().sum(-1)).clamp(min=_TINY)
    kl = (p * (p.clamp(min=_TINY).log() - log_q)).sum(-1)
    kl = kl + rest_p * (rest_p.log() - rest_q.log())
    return temperature**2 * kl.mean()


_TINY = 1e-6


def _check(student: torch.Tensor, teacher: torch.Tensor, temperature=1.0) -> None:
    if student.shape != teacher.shape:
        raise TrainingError(
            f"The student's {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} must have one shape."
        )
    if not temperature > 0:
        raise TrainingError(f"temperature={temperature}: it must be above 0.")


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise TrainingError(
            f"The mask {tuple(mask.shape)} must have a place for each of the "
            f"{tuple(values.shape)} tokens."
        )
    if not mask.any():
        raise TrainingError("Every token is masked: there is nothing to learn from.")
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def fused_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    kept: TopK,
    weighting: str = "paper",
    temperature: float = TEMPERATURE,
    rows: int = 64,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """``combined_loss`` of both terms straight from hidden states, for large V.

    The (n, V) logits are never whole in memory: a chunk of rows is projected, its loss
    and its gradient are computed at once while it is in the processor's cache, and
    only d(loss)/d(hidden) is kept. For a frozen ``weight`` that is all there is.

    Args:
        hidden: (n, d) of the student, which gets the gradient.
        weight: (V, d) of the vocabulary's projection, frozen; its dtype is computed in.
        labels: int64 (n,), no padding. kept: the teacher's top k at ``temperature``.
        rows: a chunk's.

    Returns:
        The loss, and its two terms (soft, hard) without gradient.
    """
    if weighting not in WEIGHTS:
        raise TrainingError(f"weighting={weighting!r}: use {', '.join(WEIGHTS)}.")
    loss, soft, hard = _Fused.apply(
        hidden, weight, labels, kept.classes, kept.probabilities, *WEIGHTS[weighting],
        temperature, rows,
    )  # fmt: skip
    return loss, (soft, hard)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, labels, classes, probabilities, a_kl, a_pl, t, rows
    ):
        n = len(hidden)
        h = hidden.detach().to(weight.dtype)
        gradient = torch.empty_like(h)
        soft = hard = 0.0
        for chunk in batches(n, rows):
            i, y = classes[chunk].long(), labels[chunk, None]
            p = probabilities[chunk].float()
            z = h[chunk] @ weight.T  # (rows, V)
            e = z.sub_(z.amax(-1, keepdim=True)).div_(t)
            at_i, at_y = e.gather(1, i).float(), e.gather(1, y).float()
            e = e.exp_()  # softened: e / its sum
            sharp = e.pow(t)  # as they are: e^T / its sum, with no second exp
            sum_e = e.sum(-1, keepdim=True, dtype=torch.float32)
            sum_sharp = sharp.sum(-1, keepdim=True, dtype=torch.float32)
            hard += (sum_sharp.log() - t * at_y).sum()
            log_q = at_i - sum_e.log()
            q = e.gather(1, i).float() / sum_e  # (rows, k) the student's, softened
            # from the same rounded numbers, or a small rest would be all rounding
            rest_q = (1 - q.sum(-1, keepdim=True)).clamp(min=_TINY)
            rest_p = (1 - p.sum(-1, keepdim=True)).clamp(min=_TINY)
            soft += (p * (p.clamp(min=_TINY).log() - log_q)).sum()
            soft += (rest_p * (rest_p.log() - rest_q.log())).sum()
            # d soft / dz = T·(q − p) for what was kept; the rest shares its class's
            share = rest_p / rest_q
            g = sharp.mul_((a_pl / sum_sharp).to(z.dtype))
            g.add_(e.mul_((a_kl * t * (1 - share) / sum_e).to(z.dtype)))
            g.scatter_add_(1, i, (a_kl * t * (q * share - p)).to(z.dtype))
            g.scatter_add_(1, y, torch.full_like(at_y, -a_pl).to(z.dtype))
            gradient[chunk] = g @ weight
        ctx.save_for_backward((gradient / n).to(hidden.dtype))
        soft, hard = t**2 * soft / n, hard / n
        ctx.mark_non_differentiable(soft, hard)
        return a_kl * soft + a_pl * hard, soft, hard

    @staticmethod
    def backward(ctx, by, *_):
        (gradient,) = ctx.saved_tensors
        return (gradient * by, *[None] * 8)
