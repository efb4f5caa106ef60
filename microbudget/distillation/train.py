"""A small classifier learns from sentences, from a teacher's answers, or from both.

One ``train`` for every way, so that only the loss differs: hard labels, soft targets
(Hinton et al. 2015), raw logits, hidden states with a layer map and a learned
projection (Romero et al. 2015; Jiao et al. 2020), attention transfer.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..core.errors import TrainingError
from ..core.precision import of_training
from ..training import text_classifier
from ..training.loop import History, TrainConfig, fit
from ..training.losses import (
    IGNORE,
    TEMPERATURE,
    attention_transfer_loss,
    hidden_state_loss,
    logit_mse_loss,
    soft_target_loss,
)
from .students import read, widths
from .teacher_cache import Outputs

LayerMap = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Recipe:
    """How much each term weighs in a student's loss, a mean over sentences.

    Attributes:
        hard: cross-entropy with the labels; 0 for a sentence without one.
        soft: T²·KL(teacher ‖ student) at ``temperature``, for every sentence.
        logits: mean squared distance of the logits.
        hidden: mean squared distance of the states of ``layer_map``'s pairs, the
            student's projected by a map that is learnt with it.
        attention: distance of the pairs' attention maps.
        layer_map: (student's layer, teacher's layer); default: ``layer_map``'s.
    """

    hard: float = 1.0
    soft: float = 0.0
    logits: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = TEMPERATURE
    layer_map: LayerMap = ()

    @property
    def wants_answers(self) -> bool:
        return self.soft > 0 or self.logits > 0

    @property
    def wants_states(self) -> bool:
        return self.hidden > 0 or self.attention > 0


LABELS = Recipe()
SOFT = Recipe(hard=0.0, soft=1.0)
BOTH = Recipe(hard=0.5, soft=0.5)


def layer_map(student: int, teacher: int) -> LayerMap:
    """Which layer learns from which: evenly spread, the last from the last.

    Jiao et al. 2020, TinyBERT (arXiv:1909.10351), section 3.1: layer m from layer
    m·teacher/student. Zipping the student's layers with every n-th of the teacher's
    *from 0* would leave its last one, all that its head sees, without a pupil.

    Args:
        student, teacher: numbers of layers; layer 0, the embeddings, isn't counted.

    Raises:
        TrainingError: no layers, or a student deeper than its teacher.
    """
    if not 1 <= student <= teacher:
        raise TrainingError(f"{student} layers can't be mapped to {teacher}.")
    return tuple((m, round(m * teacher / student)) for m in range(1, student + 1))


class Lessons(Dataset):
    """Sentences with what a teacher said about each.

    Attributes:
        lengths: tokens of every sentence.
    """

    def __init__(self, sentences, teacher: Outputs | None = None):
        if teacher is not None and len(teacher) != len(sentences):
            raise TrainingError(
                f"The teacher answered for {len(teacher)} sentences, these are "
                f"{len(sentences)}: ask it about these."
            )
        self.sentences, self.teacher = sentences, teacher
        self.lengths = sentences.lengths
        if teacher is not None and teacher.states:
            if list(teacher.lengths) != list(self.lengths):
                raise TrainingError("The teacher's states are of other sentences.")
            ends = torch.tensor([0, *teacher.lengths]).cumsum(0)
            self._starts = ends.tolist()

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, i: int) -> tuple[int, tuple]:
        return i, self.sentences[i]

    def collate(self, rows: list) -> dict:
        """-> ids, mask (batch, tokens), labels (batch,), and of the teacher logits
        (batch, classes) and states {layer: (batch, tokens, d)}, as far as it has them.
        """
        places = [i for i, _ in rows]
        ids, mask, labels = self.sentences.collate([row for _, row in rows])
        batch = {"ids": ids, "mask": mask, "labels": labels, "states": {}}
        if self.teacher is None:
            return batch
        batch["logits"] = self.teacher.logits[places]
        for layer, every in self.teacher.states.items():
            padded = torch.zeros(*ids.shape, every.shape[-1])
            for row, i in enumerate(places):
                own = every[self._starts[i] : self._starts[i + 1]]
                padded[row, : len(own)] = own
            batch["states"][layer] = padded
        return batch


class Learner(nn.Module):
    """A student and what it learns by: projections to the teacher's widths.

    They are trained with it and thrown away afterwards. Where the widths are equal
    there is none.
    """

    def __init__(self, student: nn.Module, pairs: LayerMap, teacher_widths: dict):
        super().__init__()
        self.student, own = student, widths(student)
        self.projections = nn.ModuleDict()
        for ours, theirs in pairs:
            if own[ours] != teacher_widths[theirs]:
                self.projections[str(ours)] = nn.Linear(
                    own[ours], teacher_widths[theirs]
                )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, states: bool = True):
        """Logits (batch, classes), and states of all layers if wanted."""
        return (
            read(self.student, ids, mask) if states else (self.student(ids, mask), ())
        )

    def projected(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        if str(layer) in self.projections:
            return self.projections[str(layer)](states.float())
        return states


def train(
    student: nn.Module,
    sentences,
    teacher: Outputs | None = None,
    recipe: Recipe = LABELS,
    *,
    lr: float,
    epochs: int = 1,
    batch_size: int = 16,
    precision: str = "auto",
    seed: int = 0,
    **options,
) -> History:
    """Train a student in place: AdamW, linear decay, as ``classification.train``.

    With ``LABELS`` it is that function: the student without a teacher. Order of the
    sentences and number of steps depend on ``seed`` and the sizes alone, not on the
    recipe.

    Args:
        sentences: a ``data.text.Sentences``; ``IGNORE`` (−100) as label: none.
        teacher: its answers for the same sentences, in their order.
        options: as ``training.fit`` has them (evaluate, description …).

    Raises:
        TrainingError: a recipe without anything to learn from, or that wants what the
            teacher's outputs don't hold; labels that the head has no class for; as
            ``training.fit``.
    """
    if not lr > 0:
        raise TrainingError(f"lr={lr}: the learning rate must be positive.")
    lessons, pairs = Lessons(sentences, teacher), ()
    own_widths = {}
    if recipe.wants_states and teacher is not None and teacher.states:
        pairs = recipe.layer_map or layer_map(
            len(widths(student)) - 1, max(teacher.states)
        )
        own_widths = {layer: s.shape[-1] for layer, s in teacher.states.items()}
    require(student, sentences, teacher, recipe, pairs)
    taught = recipe.wants_answers or recipe.wants_states
    if not taught and not (sentences.labels != IGNORE).any():
        raise TrainingError("No sentence has a label, and there is no teacher.")
    torch.manual_seed(seed)  # of the projections
    learner = Learner(student, pairs, own_widths).to(next(student.parameters()).device)

    def loss(module: nn.Module, batch: dict) -> torch.Tensor:
        logits, states = module(batch["ids"], batch["mask"], bool(pairs))
        total = _of_answers(logits.float(), batch, recipe)
        seen = batch["mask"].bool()
        for ours, theirs in pairs:
            target = batch["states"][theirs]
            if recipe.hidden:
                own = learner.projected(ours, states[ours])
                total = total + recipe.hidden * hidden_state_loss(own, target, seen)
            if recipe.attention:
                far = attention_transfer_loss(states[ours], target, seen)
                total = total + recipe.attention * far
        return total

    if (judge := options.get("evaluate")) is not None:
        options["evaluate"] = lambda _: judge(student)  # not the projections with it
    return run(learner, lessons, loss, lr, epochs, batch_size, precision, seed, options)


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels, a mean over *all* rows; ``IGNORE`` counts as 0."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / len(labels)


def _of_answers(logits: torch.Tensor, batch: dict, recipe: Recipe) -> torch.Tensor:
    """The terms of a loss that need no more than the logits."""
    total = logits.sum() * 0  # a batch may hold no label at all
    if recipe.hard:
        total = total + recipe.hard * label_loss(logits, batch["labels"])
    if recipe.soft:
        far = soft_target_loss(logits, batch["logits"], recipe.temperature)
        total = total + recipe.soft * far
    if recipe.logits:
        total = total + recipe.logits * logit_mse_loss(logits, batch["logits"])
    return total


def run(learner, lessons, loss, lr, epochs, batch_size, precision, seed, options):
    evaluate = options.pop("evaluate", None)
    return fit(
        learner,
        lessons,
        loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=text_classifier.optimizer(learner, lr),
            schedule="linear",
            warmup=0.1,
            precision=of_training(precision),
            lengths=lessons.lengths,
            seed=seed,
            **{"max_grad_norm": 1.0, "description": "distilling", **options},
        ),
        evaluate=evaluate,
    )


def require(student, sentences, teacher, recipe: Recipe, pairs: LayerMap) -> None:
    if not len(student.heads):
        raise TrainingError("This student has no head: add_head(task, classes).")
    terms = (recipe.hard, recipe.soft, recipe.logits, recipe.hidden, recipe.attention)
    if min(terms) < 0 or not max(terms) > 0:
        raise TrainingError(f"{recipe}: weights must not be negative, nor all 0.")
    if recipe.wants_answers and teacher is None:
        raise TrainingError("This recipe learns from a teacher: give its outputs.")
    if recipe.wants_states and not (teacher is not None and teacher.states):
        raise TrainingError(
            "This recipe learns from hidden states: ask the teacher for its layers', "
            "teacher_outputs.cached(…, layers=[3, 6])."
        )
    for ours, theirs in pairs:
        if not 0 <= ours < len(widths(student)) or theirs not in teacher.states:
            raise TrainingError(
                f"Layer map {pairs}: the student has layers 0 to "
                f"{len(widths(student)) - 1}; of the teacher {sorted(teacher.states)} "
                "were kept."
            )
    classes = student.heads[student.task].out_features
    known = sentences.labels[sentences.labels != IGNORE]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise TrainingError(
            f"Labels run from {int(known.min())} to {int(known.max())}, but the head "
            f"has {classes} classes."
        )
    if recipe.wants_answers and teacher.logits.shape[1] != classes:
        raise TrainingError(
            f"The teacher has {teacher.logits.shape[1]} classes, the student {classes}."
        )
