"""What a teacher answers for every sentence: computed once, kept on disk, read again.

A student passes its sentences many times, and there are many students; the teacher's
answer is the same every time. Its file is named after the teacher's weights and the
sentences: another teacher or another sentence is another file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..core import settings
from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import MicrobudgetError
from ..core.precision import autocast, of_training
from ..core.progress import bar
from ..data import text
from ..data.batching import batches
from ..training.losses import IGNORE
from .students import logits_and_states


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's answers, in the sentences' order, on the CPU.

    Attributes:
        logits: float32 (sentences, classes).
        states: layer -> float16 (tokens of all sentences, d); layer 0: the embeddings.
        lengths: tokens of every sentence, to find its states; empty without states.
        origin: where they come from, in words.
        path: their file, if they have one.
    """

    logits: torch.Tensor
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    origin: str = "computed"
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def first(self, n: int) -> "TeacherOutputs":
        """Those of the first ``n`` sentences."""
        lengths = self.lengths[:n]
        states = {layer: s[: sum(lengths)] for layer, s in self.states.items()}
        return replace(self, logits=self.logits[:n], states=states, lengths=lengths)

    def bytes(self) -> int:
        """Of all numbers."""
        return sum(t.nbytes for t in (self.logits, *self.states.values()))


@torch.no_grad()  # not inference mode: students are trained on the outputs
def compute_outputs(
    teacher: nn.Module, sentences: text.Sentences, layers: Sequence[int] = ()
) -> TeacherOutputs:
    """Run the teacher on every sentence.

    Args:
        layers: whose states to keep, from 1; 0: the embeddings.
    """
    teacher.eval()
    device = next(teacher.parameters()).device
    order = torch.tensor(sentences.lengths).argsort(stable=True)
    logits, states = [], {layer: [] for layer in layers}  # by length at first
    with autocast(), bar(None, "the teacher answers", total=len(order)) as shown:
        for rows in batches(len(order), 32):
            ids, mask, _ = sentences.collate([sentences[i] for i in order[rows]])
            answers, found = logits_and_states(teacher, ids.to(device), mask.to(device))
            logits.append(answers.float().cpu())  # (batch, classes)
            for layer, own in states.items():  # without the padding: (tokens, d) each
                kept = found[layer].half().cpu()
                own += [s[:n] for s, n in zip(kept, mask.sum(1), strict=True)]
            shown.update(len(ids))
    back = order.argsort()  # to the sentences' order
    return TeacherOutputs(
        torch.cat(logits)[back],
        {layer: torch.cat([own[i] for i in back]) for layer, own in states.items()},
        tuple(sentences.lengths) if states else (),
    )


def teacher_outputs(
    teacher: nn.Module, sentences: text.Sentences, layers: Sequence[int] = ()
) -> TeacherOutputs:
    """``compute_outputs``, or what it gave before; ``origin`` says which.

    Raises:
        MicrobudgetError: the outputs aren't finite; the disk is full.
    """
    path, origin = cache_path(teacher, sentences, layers), "computed"
    if path.exists():
        try:
            tensors, metadata = load_tensors(path)
            logits, lengths = tensors.pop("logits"), tuple(metadata["lengths"])
            states = {int(layer): own for layer, own in tensors.items()}
            return TeacherOutputs(logits, states, lengths, "read", path)
        except MicrobudgetError:
            origin = "computed again: the file was damaged"
    found = compute_outputs(teacher, sentences, layers)
    tensors = {str(layer): states for layer, states in found.states.items()}
    save_tensors(path, tensors | {"logits": found.logits}, lengths=found.lengths)
    return replace(found, origin=origin, path=path)


def cache_path(
    teacher: nn.Module, sentences: text.Sentences, layers: Sequence[int] = ()
) -> Path:
    """The file of these outputs, named by a digest of all that decides them.

    That is the teacher's weights and head, the tokens, the layers and the precision.
    Labels don't: a teacher isn't told them.
    """
    asked = [teacher.task, sorted(layers), of_training(), sentences.ids]
    digest = hashlib.sha256(json.dumps(asked).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # As bytes, since numpy has no bfloat16.
        raw = tensor.cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy())
    folder = settings.load().home / "runs" / "teacher"
    return folder / f"{digest.hexdigest()[:16]}.safetensors"


def mix_teachers(
    logits: Sequence[torch.Tensor], weights: Sequence[float], temperature: float
) -> torch.Tensor:
    """Several teachers as one: the weighted mean of their softened probabilities.

    Hinton et al. 2015, section 1, average an ensemble's predictions. What comes back
    are logits that, softened by the same temperature, are that mean: every loss takes
    them for one teacher's.

    Args:
        logits: of each teacher (sentences, classes).
        weights: none negative; their sum is brought to 1.
    """
    fractions = torch.tensor(weights, dtype=torch.float64)
    log_p = torch.stack([F.log_softmax(z.double() / temperature, -1) for z in logits])
    log_fractions = (fractions / fractions.sum()).log().view(-1, 1, 1)
    return (temperature * torch.logsumexp(log_p + log_fractions, 0)).float()


def mixture_weights(
    logits: Sequence[torch.Tensor], labels: torch.Tensor
) -> list[float]:
    """How far to trust each teacher: the mixture that makes held-out labels likeliest.

    Expectation-maximisation for the weights of fixed components (Dempster, Laird and
    Rubin 1977); the likelihood is concave in them, so it finds the best. Never worse
    there than the best teacher alone, nor than the plain mean.

    Args:
        logits: of each teacher (sentences, classes), on sentences that none of them
            was trained on. labels: int64 (sentences,).
    """
    p = [F.softmax(z.double(), -1).gather(1, labels[:, None]) for z in logits]
    likelihood = torch.cat(p, 1).clamp_min(1e-12)  # (sentences, teachers)
    weights = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    for _ in range(200):
        responsibility = likelihood * weights
        weights = (responsibility / responsibility.sum(1, keepdim=True)).mean(0)
    return weights.tolist()


def with_teacher_labels(labelled: text.Labelled, logits: torch.Tensor) -> text.Labelled:
    """The same sentences with the teacher's first choices as labels: a black box's."""
    return text.Labelled(labelled.texts, tuple(logits.argmax(1).tolist()))


def unlabelled(texts: Sequence[str]) -> text.Labelled:
    """Sentences without labels: ``IGNORE`` stands in place of each."""
    return text.Labelled(tuple(texts), (IGNORE,) * len(texts))
