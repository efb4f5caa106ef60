"""What a teacher says about every sentence: computed once, kept on disk, read again.

A student passes its sentences many times, and there are many students; the teacher's
answer is the same every time. Its file is named after the teacher's weights and the
sentences: another teacher or another sentence is another file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ..core import settings
from ..core.errors import DataError, TrainingError
from ..core.files import atomic_path
from ..core.precision import autocast, of_training
from ..core.progress import bar
from ..data import text
from ..data.batching import batches
from ..training.losses import IGNORE
from .students import read as read_layers

_VERSION = 1


@dataclass(frozen=True)
class Outputs:
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

    def first(self, n: int) -> "Outputs":
        """Those of the first ``n`` sentences."""
        lengths = self.lengths[:n]
        states = {layer: s[: sum(lengths)] for layer, s in self.states.items()}
        return Outputs(self.logits[:n], states, lengths, self.origin, self.path)

    def bytes(self) -> int:
        """Of all numbers."""
        tensors = (self.logits, *self.states.values())
        return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()  # not inference mode: students are trained on it
def compute(
    teacher: nn.Module,
    sentences: text.Sentences,
    layers: Sequence[int] = (),
    batch_size: int = 32,
    precision: str = "auto",
) -> Outputs:
    """Ask the teacher about every sentence.

    Args:
        layers: whose states to keep, 0 for the embeddings, −1 for the last layer.

    Raises:
        TrainingError: a layer that isn't there; an answer that isn't finite.
    """
    teacher.eval()
    device = next(teacher.parameters()).device
    lengths = torch.tensor(sentences.lengths)
    order = lengths.argsort(stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    logits: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = {}
    with (
        autocast(precision),
        bar(None, "the teacher answers", total=len(order), unit="sentence") as shown,
    ):
        for rows in batches(len(order), batch_size):
            own = order[rows]
            ids, mask, _ = sentences.collate([sentences[i] for i in own.tolist()])
            answer, found = read_layers(teacher, ids.to(device), mask.to(device))
            if logits is None:
                logits = torch.empty(len(order), answer.shape[1])
                for layer in {_layer(i, len(found)) for i in layers}:
                    d = found[layer].shape[-1]
                    states[layer] = torch.empty(int(starts[-1]), d, dtype=torch.half)
            logits[own] = answer.float().cpu()
            for layer, kept in states.items():
                part = found[layer].half().cpu()
                for row, i in enumerate(own.tolist()):
                    kept[starts[i] : starts[i + 1]] = part[row, : lengths[i]]
            shown.update(len(own))
    if logits is None:
        raise DataError("There are no sentences to ask the teacher about.")
    if not all(torch.isfinite(t).all() for t in (logits, *states.values())):
        raise TrainingError(
            "The teacher answered with NaN or infinity: look at its weights."
        )
    return Outputs(logits, states, tuple(sentences.lengths) if states else ())


def cached(
    teacher: nn.Module,
    sentences: text.Sentences,
    layers: Sequence[int] = (),
    folder: Path | None = None,
    precision: str = "auto",
) -> Outputs:
    """``compute``, or what it gave before; a damaged file is computed again.

    Args:
        folder: default: ``runs/teacher`` in the course's folder.

    Returns:
        With ``origin`` ``"computed"``, ``"read"``, or why it was computed again.

    Raises:
        TrainingError, DataError: as ``compute``; the disk is full.
    """
    folder = folder or settings.load().home / "runs" / "teacher"
    key = fingerprint(teacher, sentences, layers, precision)
    path, origin = Path(folder) / f"{key[:16]}.safetensors", "computed"
    if path.exists():
        try:
            return _load(path, key)
        except Exception as error:  # safetensors, json and our checks have their own
            reason = " ".join(str(error).split())[:80]
            origin = f"computed again: the file was damaged ({reason})"
    found = compute(teacher, sentences, layers, precision=precision)
    _save(found, path, key)
    return Outputs(found.logits, found.states, found.lengths, origin, path)


def fingerprint(
    teacher: nn.Module,
    sentences: text.Sentences,
    layers: Sequence[int] = (),
    precision: str = "auto",
) -> str:
    """sha256 of all that decides the answers: weights, head, tokens, layers, precision.

    Labels don't: a teacher isn't told them.
    """
    config = getattr(getattr(teacher, "encoder", None), "config", None)
    shape = config.to_json_string() if config is not None else ""
    asked = [_VERSION, type(teacher).__name__, teacher.task, sorted(set(layers)),
             of_training(precision), shape]  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy())
    digest.update(json.dumps(sentences.ids).encode())
    return digest.hexdigest()


def mixed(
    logits: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    temperature: float = 2.0,
) -> torch.Tensor:
    """Several teachers as one: the weighted mean of their softened probabilities.

    Hinton et al. 2015, section 1, average an ensemble's predictions. What comes back
    are logits that, softened by the same temperature, are that mean: every loss takes
    them for one teacher's.

    Args:
        logits: of each teacher (sentences, classes). weights: positive, their sum is
            brought to 1; default: all alike.

    Raises:
        TrainingError: no teacher, different shapes, or weights that don't fit.
    """
    weights = [1.0] * len(logits) if weights is None else list(weights)
    if not logits or len({z.shape for z in logits}) > 1:
        raise TrainingError(
            f"Teachers must answer for the same sentences and classes, not "
            f"{[tuple(z.shape) for z in logits]}."
        )
    if len(weights) != len(logits) or min(weights) < 0 or not sum(weights) > 0:
        raise TrainingError(f"{weights}: a weight for each of {len(logits)} teachers.")
    share = torch.tensor(weights, dtype=torch.float64)
    log_p = torch.stack([F.log_softmax(z.double() / temperature, -1) for z in logits])
    log_share = (share / share.sum()).log()[:, None, None]
    return (temperature * torch.logsumexp(log_p + log_share, 0)).float()


def mixture_weights(
    logits: Sequence[torch.Tensor], labels: torch.Tensor, rounds: int = 200
) -> list[float]:
    """How far to trust each teacher: the mixture that makes held-out labels likeliest.

    Expectation-maximisation for the weights of fixed components (Dempster, Laird and
    Rubin 1977); the likelihood is concave in them, so it finds the best. Never worse
    there than the best teacher alone, nor than the plain mean.

    Args:
        logits: of each teacher (sentences, classes), on sentences that none of them
            learnt from. labels: int64 (sentences,).
    """
    own = labels[:, None]
    p = [F.softmax(z.double(), -1).gather(1, own).squeeze(1) for z in logits]
    likelihood = torch.stack(p, 1).clamp_min(1e-12)  # (sentences, teachers)
    share = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    for _ in range(rounds):
        blame = likelihood * share
        share = (blame / blame.sum(1, keepdim=True)).mean(0)
    return share.tolist()


def labelled_by(labelled: text.Labelled, logits: torch.Tensor) -> text.Labelled:
    """The same sentences with the teacher's first choices as labels: a black box's."""
    if len(labelled) != len(logits):
        raise DataError(f"{len(logits)} answers for {len(labelled)} sentences.")
    return text.Labelled(labelled.texts, tuple(logits.argmax(1).tolist()))


def without_labels(labelled: text.Labelled) -> text.Labelled:
    """The same sentences with every label taken away."""
    return text.Labelled(labelled.texts, (IGNORE,) * len(labelled))


def _layer(i: int, there: int) -> int:
    if not -there <= i < there:
        raise TrainingError(
            f"Layer {i}: the teacher has 0 (its embeddings) to {there - 1}."
        )
    return i % there


def _save(outputs: Outputs, path: Path, key: str) -> None:
    state = {f"states.{layer}": t for layer, t in outputs.states.items()}
    state |= {"logits": outputs.logits, "lengths": torch.tensor(outputs.lengths)}
    notes = {"key": key, "digest": _digest(state)}
    with atomic_path(path, TrainingError) as temporary:
        save_file(state, temporary, metadata=notes)


def _load(path: Path, key: str) -> Outputs:
    with safe_open(path, "pt") as file:
        notes = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if notes.get("key") != key or notes.get("digest") != _digest(state):
        raise DataError("its numbers are not those that were written")
    layers = {int(n.removeprefix("states.")): t for n, t in state.items() if "." in n}
    lengths = tuple(state["lengths"].int().tolist())
    return Outputs(state["logits"], layers, lengths, "read", path)


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}".encode())
        if state[name].numel():
            digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
