"""Transfer learning: a pretrained backbone, a new head, and how much to unfreeze.

Everything works on any backbone that is a sequence of stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from ..core.checks import as_labels
from ..core.errors import TrainingError
from ..data.batching import batches
from ..evaluation.metrics import accuracy
from ..models.vision import fold_batchnorm
from .loop import History, TrainConfig, fit


class MultiStageFeatures(nn.Module):
    """A frozen backbone's features after some of its stages, averaged over space.

    Early stages know colours and petals' texture, late ones dogs and daisies; a linear
    head may use both. With ``unit`` every stage's vector is brought to unit length, so
    that a bright image doesn't outvote a dim one, nor one stage another.

    Args:
        stages: a sequence from images to feature maps; (batch, 3, h, w) goes in.
        at: indices of the stages to read, such as ``(13, 17, 18)``.
    """

    def __init__(self, stages: nn.Sequential, at: Sequence[int], unit: bool = True):
        super().__init__()
        self.stages, self.at, self.unit = stages, tuple(at), unit

    @property
    def width(self) -> int:
        """Length of the feature vector: the channels of all stages that are read."""
        layers = [list(self.stages[i].modules()) for i in self.at]
        convolutions = [[m for m in ms if isinstance(m, nn.Conv2d)] for ms in layers]
        return sum(of_stage[-1].out_channels for of_stage in convolutions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, h, w) -> (batch, channels of all stages that are read)."""
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
        flat = features.reshape(-1, features.shape[-1])  # (views · images, width)
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("scale", (flat - flat.mean(0)).pow(2).mean().sqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.scale.clamp_min(1e-12)


@dataclass(frozen=True)
class HeadConfig(TrainConfig):
    """How to train a head on cached features: AdamW, the rate falling to zero.

    The strong weight decay and the label smoothing suit ten images a class.
    """

    epochs: int = 20
    lr: float = 3e-3
    weight_decay: float = 1.0
    schedule: str = "cosine"
    description: str = "head"
    label_smoothing: float = 0.1


def train_head(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    config: HeadConfig = HeadConfig(),
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> History:
    """Train a head on cached features, in place; milliseconds an epoch.

    Args:
        features: (images, width), or (views, images, width) when each image was seen
            several times, mirrored for instance: every view is an example.
        labels: int64 (images,).
        evaluate: as for ``fit``.

    Raises:
        TrainingError: features and labels don't fit together, or aren't finite.
    """
    views = features if features.ndim == 3 else features.unsqueeze(0)
    labels = as_labels(labels, _classes_of(head), TrainingError, views.shape[1])
    data = (views.flatten(0, 1), labels.repeat(len(views)))
    loss = _cross_entropy(config.label_smoothing)
    return fit(head, data, loss, config, evaluate=evaluate)


def train_heads(
    features: torch.Tensor,
    labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    config: HeadConfig = HeadConfig(),
    seeds: int = 3,
) -> tuple[torch.Tensor, nn.Linear]:
    """Linear heads that differ in their seed alone: what ``train_head`` says.

    Returns:
        Right (1) or wrong (0), float (seeds, test images), and the last head.
    """
    hits, classes = [], int(labels.max()) + 1
    for seed in range(seeds):
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[-1], classes)
        train_head(head, features, labels, replace(config, seed=seed))
        hits.append(predict(head, test).argmax(1) == test_labels)
    return torch.stack(hits).float(), head


@torch.inference_mode()
def predict(
    model: nn.Module, inputs: torch.Tensor, batch_size: int = 256
) -> torch.Tensor:
    """Logits (images, classes), averaged over views if there are several.

    Args:
        inputs: (images, …) or, for cached features, (views, images, width).
    """
    model.eval()
    device = next(model.parameters(), inputs).device  # packed models have none
    views = inputs if inputs.ndim == 3 else inputs.unsqueeze(0)
    logits = [
        torch.cat([model(x[rows].to(device)) for rows in batches(len(x), batch_size)])
        for x in views
    ]
    return torch.stack(logits).mean(0).float().cpu()


def score(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy of ``predict``."""
    return accuracy(labels, predict(model, inputs).argmax(1))


def split(stages: nn.Sequential, at: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a backbone before stage ``at``: (what stays frozen, what will be tuned).

    The tuned part is a folded copy: without batch-norm there are no running statistics
    for ten images a class to spoil. The frozen part is shared, not copied.
    """
    return stages[:at], fold_batchnorm(stages[at:]).requires_grad_(True)


@dataclass(frozen=True)
class StagesConfig(TrainConfig):
    """How to train a backbone's last stages, with the head at a rate of its own."""

    epochs: int = 8
    lr: float = 5e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    description: str = "fine-tuning"


def fine_tune(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    config: StagesConfig = StagesConfig(),
    head: nn.Module | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> History:
    """Train a backbone's last stages with its head, from cached features, in place.

    Args:
        model: inputs (batch, channels, h, w) -> logits; begin with a *trained* head, or
            its random gradients wreck the pretrained stages in the first steps.
        inputs: float (images, channels, h, w), what the frozen part computed; or
            (views, images, channels, h, w).
        head: the part of ``model`` that is trained with ``head_lr`` instead of ``lr``.
        evaluate: as for ``fit``.

    Raises:
        TrainingError: inputs and labels don't fit together.
    """
    images = inputs.shape[inputs.ndim - 4]
    labels = as_labels(labels, _classes_of(head or model), TrainingError, images)
    if inputs.ndim == 5:
        labels, inputs = labels.repeat(len(inputs)), inputs.flatten(0, 1)
    of_head = set(head.parameters()) if head is not None else set()

    def optimizer(parameters):
        groups = [
            {"params": [p for p in parameters if p not in of_head], "lr": config.lr},
            {"params": [p for p in parameters if p in of_head], "lr": config.head_lr},
        ]
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)

    config = replace(config, optimizer=optimizer)
    return fit(model, (inputs, labels), _cross_entropy(0.1), config, evaluate=evaluate)


def _classes_of(model: nn.Module) -> int | None:
    """How many logits a network gives: what its last linear layer puts out."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return layers[-1].out_features if layers else None


def _cross_entropy(label_smoothing: float):
    def loss(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, label_smoothing=label_smoothing)

    return loss
