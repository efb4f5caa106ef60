"""A small classifier is trained on labels, on a teacher's answers, or on both.

One ``train`` for every method, so that only the loss differs: hard labels, soft targets
(Hinton et al. 2015), raw logits, hidden states with a layer map and a trained
projection (Romero et al. 2015; Jiao et al. 2020), attention transfer.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..core.errors import TrainingError
from ..training.loop import History, fit
from ..training.losses import (
    IGNORE,
    TEMPERATURE,
    attention_transfer_loss,
    hidden_state_loss,
    logit_mse_loss,
    soft_target_loss,
)
from ..training.text_classifier import FinetuneConfig
from .students import logits_and_states, state_widths
from .teachers import TeacherOutputs

LayerMap = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DistilConfig(FinetuneConfig):
    """How a student is trained: as every classifier, with more terms in the loss.

    Attributes:
        alpha_hard: of the cross-entropy with the labels; 0 for a sentence without one.
        alpha_soft: of T²·KL(teacher ‖ student) at ``temperature``.
        alpha_logits: of the mean squared distance of the logits.
        alpha_hidden: of the mean squared distance of the states of ``layer_map``'s
            pairs, the student's projected by a linear layer that is trained with it.
        alpha_attention: of the distance of the pairs' attention maps.
        layer_map: (student's layer, teacher's layer); default: ``layer_map``'s.
    """

    alpha_hard: float = 1.0
    alpha_soft: float = 0.0
    alpha_logits: float = 0.0
    alpha_hidden: float = 0.0
    alpha_attention: float = 0.0
    temperature: float = TEMPERATURE
    layer_map: LayerMap = ()

    @property
    def needs_logits(self) -> bool:
        return self.alpha_soft > 0 or self.alpha_logits > 0

    @property
    def needs_states(self) -> bool:
        return self.alpha_hidden > 0 or self.alpha_attention > 0


def layer_map(student: int, teacher: int) -> LayerMap:
    """Which layer learns from which: evenly spread, the last from the last.

    Jiao et al. 2020, TinyBERT (arXiv:1909.10351), section 3.1: layer m from layer
    m·teacher/student. Zipping the student's layers with every n-th of the teacher's
    *from 0* would leave out its last one, all that its head sees.

    Args:
        student, teacher: numbers of layers; layer 0, the embeddings, isn't counted.

    Raises:
        TrainingError: no layers, or a student deeper than its teacher.
    """
    if not 1 <= student <= teacher:
        raise TrainingError(f"{student} layers can't be mapped to {teacher}.")
    return tuple((m, round(m * teacher / student)) for m in range(1, student + 1))


class DistilDataset(Dataset):
    """Sentences with what a teacher answered for each.

    Attributes:
        lengths: tokens of every sentence.
    """

    def __init__(self, sentences, teacher: TeacherOutputs | None = None):
        """
        Args:
            sentences: a ``data.text.Sentences``; ``IGNORE`` (−100) as label: none.
            teacher: its outputs for the same sentences, in their order.

        Raises:
            TrainingError: outputs for other sentences.
        """
        self.sentences, self.teacher = sentences, teacher
        self.lengths = sentences.lengths
        if teacher is None:
            return
        same = len(teacher) == len(sentences)
        if not same or (teacher.states and list(teacher.lengths) != self.lengths):
            raise TrainingError(
                f"The teacher answered for {len(teacher)} other sentences than these "
                f"{len(sentences)}: get its outputs for these."
            )
        self._starts = torch.tensor([0, *teacher.lengths]).cumsum(0).tolist()

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, i: int) -> tuple[int, tuple]:
        return i, self.sentences[i]

    def collate(self, rows: list) -> dict:
        """-> ids, mask (batch, tokens), labels (batch,), and of the teacher logits
        (batch, classes) and states {layer: (batch, tokens, d)}, as far as it has them.
        """
        indices = [i for i, _ in rows]
        ids, mask, labels = self.sentences.collate([row for _, row in rows])
        batch = {"ids": ids, "mask": mask, "labels": labels, "states": {}}
        if self.teacher is None:
            return batch
        batch["logits"] = self.teacher.logits[indices]
        for layer, states in self.teacher.states.items():
            padded = torch.zeros(*ids.shape, states.shape[-1])  # (batch, tokens, d)
            for row, i in enumerate(indices):
                own = states[self._starts[i] : self._starts[i + 1]]
                padded[row, : len(own)] = own
            batch["states"][layer] = padded
        return batch


class StudentWithProjections(nn.Module):
    """A student, and linear layers from its states' widths to its teacher's.

    They are trained with it and thrown away afterwards. Where the widths are equal
    there is none.
    """

    def __init__(self, student: nn.Module, pairs: LayerMap, teacher: TeacherOutputs):
        super().__init__()
        self.student, widths = student, state_widths(student)
        self.projections = nn.ModuleDict()
        for own, theirs in pairs:
            width = teacher.states[theirs].shape[-1]
            if widths[own] != width:
                self.projections[str(own)] = nn.Linear(widths[own], width)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, states: bool):
        """Logits (batch, classes), and the states of all layers if wanted."""
        if states:
            return logits_and_states(self.student, ids, mask)
        return self.student(ids, mask), ()

    def projected(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, own width) -> (batch, tokens, teacher's width)."""
        if str(layer) in self.projections:
            return self.projections[str(layer)](states.float())
        return states


def train(student: nn.Module, data: DistilDataset, config: DistilConfig) -> History:
    """Train a student in place.

    With ``DistilConfig()``, labels alone, this is ``text_classifier.train``: the
    student without a teacher. The order of the sentences and the number of steps depend
    on the seed and the sizes, not on the loss.

    Raises:
        TrainingError: a loss that needs what the teacher's outputs don't hold, or that
            has nothing to go by; a layer map of other layers; as ``training.fit``.
    """
    _require_targets(data, config)
    pairs = _layer_pairs(student, data.teacher, config) if config.needs_states else ()
    torch.manual_seed(config.seed)  # of the projections
    device = next(student.parameters()).device
    model = StudentWithProjections(student, pairs, data.teacher).to(device)

    def loss(module: nn.Module, batch: dict) -> torch.Tensor:
        logits, states = module(batch["ids"], batch["mask"], bool(pairs))
        total = _loss_of_logits(logits.float(), batch, config)
        mask = batch["mask"].bool()
        for own, theirs in pairs:
            target = batch["states"][theirs]
            if config.alpha_hidden:
                projected = model.projected(own, states[own])
                distance = hidden_state_loss(projected, target, mask)
                total = total + config.alpha_hidden * distance
            if config.alpha_attention:
                distance = attention_transfer_loss(states[own], target, mask)
                total = total + config.alpha_attention * distance
        return total

    return fit(model, data, loss, config.for_fit(model, data.lengths))


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, a mean over *all* rows; ``IGNORE`` counts as 0."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / len(labels)


def _loss_of_logits(
    logits: torch.Tensor, batch: dict, config: DistilConfig
) -> torch.Tensor:
    """The terms of the loss that need no more than the logits."""
    total = logits.sum() * 0  # so that there is a gradient even without any term
    if config.alpha_hard:
        total = total + config.alpha_hard * label_loss(logits, batch["labels"])
    if config.alpha_soft:
        distance = soft_target_loss(logits, batch["logits"], config.temperature)
        total = total + config.alpha_soft * distance
    if config.alpha_logits:
        distance = logit_mse_loss(logits, batch["logits"])
        total = total + config.alpha_logits * distance
    return total


def _require_targets(data: DistilDataset, config: DistilConfig) -> None:
    if config.needs_logits and data.teacher is None:
        raise TrainingError(
            "This loss needs a teacher's logits: DistilDataset(sentences, "
            "teacher_outputs(teacher, sentences))."
        )
    if config.needs_states and not (data.teacher and data.teacher.states):
        raise TrainingError(
            "This loss needs the teacher's hidden states: get its outputs with them, "
            "teacher_outputs(teacher, sentences, layers=[3, 6])."
        )
    taught = config.needs_logits or config.needs_states
    if not taught and not (data.sentences.labels != IGNORE).any():
        raise TrainingError("No sentence has a label, and there is no teacher.")


def _layer_pairs(
    student: nn.Module, teacher: TeacherOutputs, config: DistilConfig
) -> LayerMap:
    depth = len(state_widths(student)) - 1
    pairs = config.layer_map or layer_map(depth, max(teacher.states))
    for own, theirs in pairs:
        if not 0 <= own <= depth or theirs not in teacher.states:
            raise TrainingError(
                f"Layer map {pairs}: the student has layers 0 to {depth}; of the "
                f"teacher {sorted(teacher.states)} were kept."
            )
    return pairs
