"""Students that teach each other in training: distillation without a teacher."""

from collections.abc import Sequence

import torch
from torch import nn

from ..training.loop import History, fit
from ..training.losses import soft_target_loss
from .student_training import DistilConfig, DistilDataset, label_loss


def train_mutually(
    students: Sequence[nn.Module], sentences, config: DistilConfig
) -> History:
    """Train two students or more in place, each on the labels and on the others.

    Zhang et al. 2018, Deep Mutual Learning (arXiv:1706.00384), equations 8 and 9: each
    one's loss is its cross-entropy + the mean KL(other ‖ own) at T = 1. Here all take
    their step at once, from the same predictions.

    Args:
        sentences: a ``data.text.Sentences``; ``IGNORE`` (−100) as label: none.
        config: ``alpha_hard`` and ``alpha_soft`` weigh the two terms.
    """
    assert len(students) >= 2

    def loss(module: nn.Module, batch: dict) -> torch.Tensor:
        all_logits = [z.float() for z in module(batch["ids"], batch["mask"])]
        total = 0.0
        for i, own in enumerate(all_logits):
            total = total + config.alpha_hard * label_loss(own, batch["labels"])
            others = [z.detach() for j, z in enumerate(all_logits) if j != i]
            soft = [soft_target_loss(own, z, config.temperature) for z in others]
            total = total + config.alpha_soft * sum(soft) / len(soft)
        return total

    model, data = SideBySide(students), DistilDataset(sentences)
    return fit(model, data, loss, config.for_fit(model, data.lengths))


class SideBySide(nn.Module):
    """Several students as one module: (ids, mask) -> the logits of each."""

    def __init__(self, students: Sequence[nn.Module]):
        super().__init__()
        self.students = nn.ModuleList(students)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return [student(ids, mask) for student in self.students]
