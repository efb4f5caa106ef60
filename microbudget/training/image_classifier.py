"""Transfer learning: a pretrained backbone, a new head, and how much to unfreeze.

Everything works on any backbone that is a sequence of stages.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ..core.errors import DataError, MicrobudgetError
from ..core.files import atomic_path
from ..data.batching import batches
from ..evaluation.metrics import accuracy
from ..models.vision import fold_batchnorm
from .loop import History, TrainConfig, fit


class PooledDepths(nn.Module):
    """A frozen backbone as a describer: its maps at some depths, averaged over space.

    Early stages know colours and petals' texture, late ones dogs and daisies; a linear
    head may use both. With ``unit`` every depth's vector is brought to unit length, so
    that a bright picture doesn't outvote a dim one, nor one depth another.

    Args:
        stages: a sequence from pictures to maps; (batch, 3, h, w) goes in.
        at: indices of the stages to read, such as ``(13, 17, 18)``.
    """

    def __init__(self, stages: nn.Sequential, at: Sequence[int], unit: bool = True):
        super().__init__()
        if not at or min(at) < 0 or max(at) >= len(stages):
            raise ValueError(f"at={tuple(at)} must name stages 0 to {len(stages) - 1}")
        self.stages, self.at, self.unit = stages, tuple(sorted(set(at))), unit

    @property
    def width(self) -> int:
        """Length of the description: the channels of all depths."""
        return sum(_channels(self.stages[i]) for i in self.at)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, h, w) -> (batch, channels of all depths)."""
        found = []
        for i, stage in enumerate(self.stages):
            x = stage(x)  # (batch, channels, h, w)
            if i in self.at:
                vector = x.mean((2, 3)).float()  # (batch, channels)
                found.append(F.normalize(vector, dim=1) if self.unit else vector)
        return torch.cat(found, 1)


class Standardise(nn.Module):
    """Subtract the training features' mean, divide by ONE scale for all of them.

    A scale a feature would blow up those that hardly vary: noise.
    """

    def __init__(self, features: torch.Tensor):
        super().__init__()
        flat = features.reshape(-1, features.shape[-1])
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("scale", (flat - flat.mean(0)).pow(2).mean().sqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.scale.clamp_min(1e-12)


def linear_head(width: int, classes: int) -> nn.Linear:
    """Logistic regression: (batch, width) -> (batch, classes)."""
    return nn.Linear(width, classes)


def dense_head(
    width: int, classes: int, hidden: int = 256, dropout: float = 0.5
) -> nn.Sequential:
    """One hidden layer with dropout: (batch, width) -> (batch, classes)."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


def train_head(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int = 20,
    lr: float = 3e-3,
    weight_decay: float = 1.0,
    smoothing: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
) -> History:
    """Train a head on cached features, in place; milliseconds an epoch.

    The strong weight decay and the label smoothing suit ten pictures a class.

    Args:
        features: (pictures, width), or (views, pictures, width) when each picture was
            seen several times, mirrored for instance: every view is an example.
        labels: int64 (pictures,).

    Raises:
        DataError: features and labels don't fit together, or aren't finite.
        TrainingError: as ``training.fit``.
    """
    views = _views(features)
    if views.shape[1] != len(labels):
        raise DataError(f"{views.shape[1]} features but {len(labels)} labels.")
    data = (views.flatten(0, 1), labels.repeat(len(views)))

    def loss(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, label_smoothing=smoothing)

    return fit(
        head,
        data,
        loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            schedule="cosine",
            seed=seed,
            description="head",
        ),
    )


@torch.inference_mode()
def predict(
    model: nn.Module, inputs: torch.Tensor, batch_size: int = 256
) -> torch.Tensor:
    """Logits (pictures, classes), averaged over views if there are several.

    Args:
        inputs: (pictures, …) or, for cached features, (views, pictures, width).
    """
    model.eval()
    device = next(model.parameters(), inputs).device  # packed models have none
    many = inputs if inputs.ndim == 3 else inputs.unsqueeze(0)
    logits = [
        torch.cat([model(x[rows].to(device)) for rows in batches(len(x), batch_size)])
        for x in many
    ]
    return torch.stack(logits).mean(0).float().cpu()


def score(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy of ``predict``."""
    return accuracy(labels, predict(model, inputs).argmax(1))


def split(stages: nn.Sequential, at: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a backbone before stage ``at``: (what stays frozen, what will be tuned).

    The tuned part is a folded copy: without batch-norm there are no running statistics
    for ten pictures a class to spoil. The frozen part is shared, not copied.

    Raises:
        ValueError: nothing would be left on one side.
    """
    if not 0 < at < len(stages):
        raise ValueError(f"at={at} must be between 1 and {len(stages) - 1}")
    tuned = fold_batchnorm(stages[at:]).requires_grad_(True)
    return stages[:at], tuned


def fine_tune(
    model: nn.Module,
    maps: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int = 8,
    lr: float = 5e-4,
    head: nn.Module | None = None,
    head_lr: float = 1e-3,
    smoothing: float = 0.1,
    batch_size: int = 64,
    precision: str = "no",
    seed: int = 0,
) -> History:
    """Train a backbone's last stages with its head, from cached maps, in place.

    Args:
        model: maps (batch, channels, h, w) -> logits; begin with a *trained* head, or
            its random gradients wreck the pretrained stages in the first steps.
        maps: float (pictures, channels, h, w), what the frozen part computed; or
            (views, pictures, channels, h, w).
        head: the part of ``model`` that learns with ``head_lr`` instead of ``lr``.

    Raises:
        DataError, TrainingError: as ``train_head``.
    """
    if maps.ndim == 5:
        labels, maps = labels.repeat(len(maps)), maps.flatten(0, 1)
    if len(maps) != len(labels):
        raise DataError(f"{len(maps)} maps but {len(labels)} labels.")
    own = {id(p) for p in head.parameters()} if head is not None else set()

    def optimizer(parameters):
        groups = [
            {"params": [p for p in parameters if id(p) not in own], "lr": lr},
            {"params": [p for p in parameters if id(p) in own], "lr": head_lr},
        ]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], weight_decay=0.01, fused=True
        )

    def loss(module, batch):
        x, y = batch
        return F.cross_entropy(module(x), y, label_smoothing=smoothing)

    return fit(
        model,
        (maps, labels),
        loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            schedule="cosine",
            precision=precision,
            seed=seed,
            description="fine-tuning",
        ),
    )


def save(model: nn.Module, path: str | os.PathLike, **card) -> Path:
    """Write weights and a card (class names, input size …) as one safetensors file.

    Atomic: an interrupted save leaves the old file.
    """
    path = Path(path)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"card": json.dumps(card)})
    return path


def load(model: nn.Module, path: str | os.PathLike) -> dict:
    """Fill ``model`` with the weights of ``save`` and return the card.

    Raises:
        MicrobudgetError: no such file, not safetensors, or another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise MicrobudgetError(f"There is no model at {path}: save one first.")
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            card = json.loads((file.metadata() or {}).get("card", "{}"))
        model.load_state_dict(state)
    except Exception as error:  # safetensors and torch raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise MicrobudgetError(
            f"{path} does not hold this model ({reason}). Build the same architecture "
            "with the same number of classes, or save it again."
        ) from error
    model.eval()
    return card


def _channels(stage: nn.Module) -> int:
    """Channels a stage gives: those of its last convolution or batch-norm."""
    widths = [
        module.out_channels if isinstance(module, nn.Conv2d) else module.num_features
        for module in stage.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    return widths[-1]


def _views(features: torch.Tensor) -> torch.Tensor:
    views = features if features.ndim == 3 else features.unsqueeze(0)
    if views.ndim != 3:
        raise DataError(
            f"features must be (pictures, width), got {tuple(features.shape)}."
        )
    if not torch.isfinite(views).all():
        raise DataError("The features hold NaN or infinity: look at the backbone.")
    return views
