"""What a student learns from a teacher: soft targets, hard labels, hidden states.

Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network
(arXiv:1503.02531); for Whisper: Gandhi, von Platen and Rush 2023 (arXiv:2311.00430).
Everywhere n is the number of tokens (or examples) and V the number of classes.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..data.batching import batches, masked_mean

IGNORE = -100  # a label that is padding: PyTorch's own convention
TEMPERATURE = 2.0  # Distil-Whisper's


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
    terms = teacher.exp() * (teacher - student)
    # a class that both exclude (logits −inf) adds nothing: 0·ln(0/0) is 0
    kl = terms.masked_fill(teacher == -torch.inf, 0.0).sum(-1)  # (…)
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


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alphas: tuple[float, float],
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """α_soft·``soft_target_loss`` + α_hard·cross-entropy: Distil-Whisper's loss.

    Args:
        student_logits, teacher_logits: (n, V). labels: int64 (n,).
        alphas: (α_soft, α_hard); what weighs nothing isn't computed.
    """
    alpha_soft, alpha_hard = alphas
    loss = student_logits.new_zeros((), dtype=torch.float32)
    if alpha_soft:
        soft = soft_target_loss(student_logits, teacher_logits, temperature)
        loss = loss + alpha_soft * soft
    if alpha_hard:
        loss = loss + alpha_hard * pseudo_label_loss(student_logits, labels)
    return loss


def chunked_loss(
    hidden: torch.Tensor,
    loss: Callable[[torch.Tensor, slice], torch.Tensor],
    rows: int = 64,
) -> torch.Tensor:
    """The mean over rows of a loss that needs logits, without holding all of them.

    The (n, V) logits of a batch would be its largest tensor by far. Here a chunk of
    rows at a time gets its logits, its loss and its gradient, and of all this only
    d(loss)/d(hidden) is kept for the backward pass.

    Args:
        hidden: (n, d), what the logits are computed from; it gets the gradient.
        loss: (hidden of a chunk, which rows these are) -> their mean loss. It may use
            parameters, but these get no gradient.
        rows: in a chunk.
    """
    return _ChunkedLoss.apply(hidden, loss, rows)


class _ChunkedLoss(torch.autograd.Function):
    """The forward pass computes the gradient; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, hidden, loss, rows):
        gradient, total = torch.empty_like(hidden), 0.0
        for chunk in batches(len(hidden), rows):
            part = hidden[chunk].detach().requires_grad_()
            with torch.enable_grad():
                value = loss(part, chunk) * (len(part) / len(hidden))
            (gradient[chunk],) = torch.autograd.grad(value, part)
            total = total + value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, loss_gradient):
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient, None, None


def _require_one_shape(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise TrainingError(
            f"The student's {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} must have one shape."
        )
