"""Students who teach each other while they learn: distillation without a teacher."""

from collections.abc import Sequence

import torch
from torch import nn

from ..core.errors import TrainingError
from ..training.loop import History
from ..training.losses import soft_target_loss
from .train import LABELS, Lessons, label_loss, require, run


def mutual(
    students: Sequence[nn.Module],
    sentences,
    *,
    lr: float,
    weight: float = 1.0,
    epochs: int = 1,
    batch_size: int = 16,
    precision: str = "auto",
    seed: int = 0,
    **options,
) -> History:
    """Train students together, each learning from the labels and from the others.

    Zhang et al. 2018, Deep Mutual Learning (arXiv:1706.00384), equations 8 and 9: each
    one's loss is its cross-entropy + the mean KL(other ‖ own) at T = 1. Here all take
    their step at once, from the same predictions.

    Args:
        weight: of the KL. Sentences without a label (``IGNORE``) have only that.

    Raises:
        TrainingError: fewer than two students; as ``train``.
    """
    if len(students) < 2:
        raise TrainingError("Mutual learning needs two students at least.")
    if not lr > 0:
        raise TrainingError(f"lr={lr}: the learning rate must be positive.")
    for student in students:
        require(student, sentences, None, LABELS, ())
    together = Together(students)

    def loss(module: nn.Module, batch: dict) -> torch.Tensor:
        answers = [z.float() for z in module(batch["ids"], batch["mask"])]
        total = 0.0
        for i, own in enumerate(answers):
            total = total + label_loss(own, batch["labels"])
            others = [z.detach() for j, z in enumerate(answers) if j != i]
            far = [soft_target_loss(own, other, temperature=1.0) for other in others]
            total = total + weight * sum(far) / len(far)
        return total

    lessons = Lessons(sentences)
    return run(
        together, lessons, loss, lr, epochs, batch_size, precision, seed, options
    )


class Together(nn.Module):
    """Students side by side: (ids, mask) -> the logits of each."""

    def __init__(self, students: Sequence[nn.Module]):
        super().__init__()
        self.students = nn.ModuleList(students)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return [student(ids, mask) for student in self.students]
