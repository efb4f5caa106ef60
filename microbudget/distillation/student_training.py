"""A small classifier is trained on labels, on a teacher's answers, or on both.

One ``train`` for every method, so that only the loss differs: hard labels, soft targets
(Hinton et al. 2015), raw logits, hidden states with a layer map and a trained
projection (Romero et al. 2015; Jiao et al. 2020), attention transfer. Or without a
teacher: students that teach each other (Zhang et al. 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
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

LayerMap = tuple[tuple[int, int], ...]  # (the student's layer, the teacher's)


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
    """

    alpha_hard: float = 1.0
    alpha_soft: float = 0.0
    alpha_logits: float = 0.0
    alpha_hidden: float = 0.0
    alpha_attention: float = 0.0
    temperature: float = TEMPERATURE


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
        states = teacher.states if teacher else {}
        same = not teacher or len(teacher) == len(sentences)
        if not same or (states and list(teacher.lengths) != self.lengths):
            raise TrainingError(
                f"These are {len(teacher)} outputs of other sentences than the "
                f"{len(sentences)} given: call teacher_outputs(teacher, sentences)."
            )
        # layer -> the states of each sentence, (its tokens, d)
        self._states = {layer: own.split(self.lengths) for layer, own in states.items()}

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, i: int) -> tuple[int, tuple]:
        return i, self.sentences[i]

    def collate(self, rows: list) -> dict:
        """-> ids, mask (batch, tokens), labels (batch,), and of the teacher logits
        (batch, classes) and states {layer: (batch, tokens, d)}, as far as it has them.
        """
        indices, examples = zip(*rows, strict=True)
        ids, mask, labels = self.sentences.collate(list(examples))
        batch = {"ids": ids, "mask": mask, "labels": labels, "states": {}}
        if self.teacher:
            batch["logits"] = self.teacher.logits[list(indices)]
        for layer, states in self._states.items():
            own = [states[i].float() for i in indices]
            batch["states"][layer] = pad_sequence(own, batch_first=True)
        return batch


class StudentWithProjections(nn.Module):
    """A student, and linear layers from its states' widths to its teacher's.

    They are trained with it and thrown away afterwards. Where the widths are equal
    the states stay as they are.
    """

    def __init__(self, student: nn.Module, pairs: LayerMap, teacher: TeacherOutputs):
        super().__init__()
        self.student, widths = student, state_widths(student)
        self.projections = nn.ModuleDict()  # by the student's layer
        for own, theirs in pairs:
            width = teacher.states[theirs].shape[-1]
            same = widths[own] == width
            projection = nn.Identity() if same else nn.Linear(widths[own], width)
            self.projections[str(own)] = projection

    def forward(self, ids: torch.Tensor, mask: torch.Tensor):
        """Logits (batch, classes), and the states of all layers."""
        return logits_and_states(self.student, ids, mask)


def train(student: nn.Module, data: DistilDataset, config: DistilConfig) -> History:
    """Train a student in place.

    With labels alone this is ``text_classifier.train``: the student without a teacher.
    The order of the sentences and the number of steps depend on the seed and the sizes,
    not on the loss.

    Raises:
        TrainingError: a loss that needs what the teacher's outputs don't hold, or that
            has nothing to go by; a label that is no class; as ``training.fit``.
    """
    _require_classes(student, data.sentences)
    pairs = _layer_pairs(student, data, config)
    torch.manual_seed(config.seed)  # of the projections
    device = next(student.parameters()).device
    model = StudentWithProjections(student, pairs, data.teacher).to(device)

    def loss(module: nn.Module, batch: dict) -> torch.Tensor:
        logits, states = module(batch["ids"], batch["mask"])
        logits, mask = logits.float(), batch["mask"].bool()
        total = logits.sum() * 0  # so that there is a gradient even without any term
        if config.alpha_hard:
            total = total + config.alpha_hard * label_loss(logits, batch["labels"])
        if config.alpha_soft:
            distance = soft_target_loss(logits, batch["logits"], config.temperature)
            total = total + config.alpha_soft * distance
        if config.alpha_logits:
            distance = logit_mse_loss(logits, batch["logits"])
            total = total + config.alpha_logits * distance
        for own, theirs in pairs:
            target = batch["states"][theirs]
            if config.alpha_hidden:
                # (batch, tokens, own width) -> (batch, tokens, teacher's width)
                projected = model.projections[str(own)](states[own].float())
                distance = hidden_state_loss(projected, target, mask)
                total = total + config.alpha_hidden * distance
            if config.alpha_attention:
                distance = attention_transfer_loss(states[own], target, mask)
                total = total + config.alpha_attention * distance
        return total

    return fit(model, data, loss, config.for_fit(model, data.lengths))


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

    Raises:
        TrainingError: a label that is no class; as ``training.fit``.
    """
    for student in students:
        _require_classes(student, sentences)
    model, data = SideBySide(students), DistilDataset(sentences)

    def loss(module: nn.Module, batch: dict) -> torch.Tensor:
        all_logits = [z.float() for z in module(batch["ids"], batch["mask"])]
        total = 0.0
        for i, own in enumerate(all_logits):
            total = total + config.alpha_hard * label_loss(own, batch["labels"])
            others = [z.detach() for j, z in enumerate(all_logits) if j != i]
            soft = [soft_target_loss(own, z, config.temperature) for z in others]
            total = total + config.alpha_soft * sum(soft) / len(soft)
        return total

    return fit(model, data, loss, config.for_fit(model, data.lengths))


class SideBySide(nn.Module):
    """Several students as one module: (ids, mask) -> the logits of each."""

    def __init__(self, students: Sequence[nn.Module]):
        super().__init__()
        self.students = nn.ModuleList(students)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return [student(ids, mask) for student in self.students]


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, a mean over *all* rows; ``IGNORE`` counts as 0."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / len(labels)


def _require_classes(student: nn.Module, sentences) -> None:
    labels, classes = sentences.labels, student.heads[student.task].out_features
    wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise TrainingError(
            f"A sentence has the label {int(wrong[0])}, but the student has {classes} "
            f"classes: 0 to {classes - 1} are allowed, and {IGNORE} for no label."
        )


def _layer_pairs(
    student: nn.Module, data: DistilDataset, config: DistilConfig
) -> LayerMap:
    """Which layers are compared; it must be possible to compute every term."""
    teacher = data.teacher
    uses_logits = config.alpha_soft or config.alpha_logits
    uses_states = config.alpha_hidden or config.alpha_attention
    if uses_logits and not teacher:
        raise TrainingError(
            "This loss needs a teacher's logits: DistilDataset(sentences, "
            "teacher_outputs(teacher, sentences))."
        )
    if not uses_states:
        if not uses_logits and (data.sentences.labels == IGNORE).all():
            raise TrainingError("No sentence has a label, and there is no teacher.")
        return ()
    if not teacher or not teacher.states:
        raise TrainingError(
            "This loss needs the teacher's hidden states: get its outputs with them, "
            "teacher_outputs(teacher, sentences, layers=[3, 6])."
        )
    pairs = layer_map(len(state_widths(student)) - 1, max(teacher.states))
    if missing := {theirs for _, theirs in pairs} - set(teacher.states):
        raise TrainingError(
            f"The student's layers learn from the teacher's {sorted(missing)}, whose "
            f"states weren't kept: teacher_outputs(…, layers={[t for _, t in pairs]})."
        )
    return pairs
