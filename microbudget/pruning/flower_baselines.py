"""Fine-tuning the last stages of a MobileNetV2, and the smaller one cut from it.

What the stages before them compute is cached, so an epoch costs only the last stages.
"""

import copy
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import nn

from ..core import settings
from ..core.errors import MicrobudgetError
from ..models.vision import fold_batchnorm
from ..training import baselines, features, image_classifier
from ..training.baselines import FlowerNet
from .channels import (
    BLOCK_COST,
    channel_costs,
    channel_importance,
    reconstruct_channels_,
)
from .checkpoint import load, save
from .mobilenet import remove_channels

FIRST_STAGE = 11  # from here on the whole network is fine-tuned
FIRST_STAGE_SMALLER = 9  # from here on the smaller one is


@dataclass(frozen=True)
class Recipe:
    """How the two networks are made."""

    importance_every: int  # one of so many training images ranks the channels …
    reconstruct_every: int  # … and one of so many is used to refit the projections
    budget: float  # fraction of the blocks' cost that is left
    epochs: int  # of fine-tuning the flower network
    smaller_epochs: int  # of fine-tuning the smaller one


_RECIPES = {"mini": Recipe(4, 2, 0.55, 2, 4), "full": Recipe(1, 1, 0.55, 8, 12)}


def recipe() -> Recipe:
    """The recipe of this profile."""
    return _RECIPES[settings.load().profile]


def folded(model: nn.Module) -> nn.Module:
    """A copy as one would deploy it: batch-norms folded, channels last."""
    return fold_batchnorm(model).to(memory_format=torch.channels_last)


def last_stages(model: nn.Module, first: int) -> nn.Sequential:
    """The model's own stages from ``first`` on, the mean over space, and its head."""
    stages = model.features[first:].requires_grad_(True)
    pooled = image_classifier.MultiStageFeatures(stages, [len(stages) - 1], unit=False)
    return nn.Sequential(pooled, model.classifier[1].requires_grad_(True))


def fine_tune_(
    model: nn.Module, first: int, inputs: torch.Tensor, labels, epochs: int
) -> None:
    """Train the last stages in place.

    Args:
        inputs: of stage ``first``: ([views,] images, channels, h, w).
    """
    end = last_stages(model, first)
    config = image_classifier.StagesConfig(epochs=epochs, lr=5e-4, batch_size=32)
    image_classifier.fine_tune(end, inputs, labels, config, head=end[1])


def mirrored_crops(images: torch.Tensor) -> torch.Tensor:
    """Each image once more: mirrored, and cut to 70 to 100 % of its width.

    Args:
        images: uint8 (n, 3, h, w); so is the result.
    """
    draws = torch.rand(len(images), 3, generator=torch.Generator().manual_seed(0))
    crops = torch.empty_like(images)
    height, width = images.shape[-2:]
    for i, (scale, *corner) in enumerate(draws):
        h, w = (max(1, int((0.7 + 0.3 * scale) * side)) for side in (height, width))
        top, left = int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1))
        cut = images[i : i + 1, :, top : top + h, left : left + w].flip(-1).float()
        whole = nn.functional.interpolate(cut, (height, width), mode="bilinear")
        crops[i] = whole[0].clamp(0, 255).to(torch.uint8)
    return crops


def fine_tuned(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The flower network, its last stages fine-tuned; and the same, trained longer.

    Longer by half of the smaller one's epochs, which is compared with both. Made once
    on this machine (set-up does it), then loaded.
    """

    def make() -> list[nn.Module]:
        whole, labels = folded(net.model), net.flowers.train.labels
        inputs = _training_inputs(net, whole, FIRST_STAGE)
        fine_tune_(whole, FIRST_STAGE, inputs, labels, recipe().epochs)
        longer = copy.deepcopy(whole)
        more = max(1, recipe().smaller_epochs // 2)
        fine_tune_(longer, FIRST_STAGE, inputs, labels, more)
        return [whole, longer]

    whole, longer = _load_or_make(net, ["whole", "longer"], make)
    return whole, longer


def whole_and_smaller(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The fine-tuned network, and the same without many of its channels.

    The second loses channels by their cost, is reconstructed by least squares and
    fine-tuned as the first was: notebook 07 shows how. Made once on this machine, then
    loaded.
    """
    whole, _ = fine_tuned(net)

    def make() -> list[nn.Module]:
        config, train = recipe(), net.flowers.train
        images = train.images(net.size)
        some = images[:: config.importance_every]
        importance = channel_importance(whole, some, net.preprocess)
        costs = channel_costs(whole, net.size)
        kept = importance.channels_to_keep(costs, config.budget, BLOCK_COST)
        smaller = remove_channels(whole, kept)
        some = images[:: config.reconstruct_every]
        reconstruct_channels_(whole, smaller, some, net.preprocess)
        first = FIRST_STAGE_SMALLER
        inputs = _training_inputs(net, smaller, first)
        fine_tune_(smaller, first, inputs, train.labels, config.smaller_epochs)
        return [smaller]

    return whole, *_load_or_make(net, ["smaller"], make)


def path_of(net: FlowerNet, name: str) -> Path:
    """Where a network is kept: "whole", "longer" or "smaller"."""
    # other data, another backbone or seed give the trained head other weights
    head = net.model.classifier[1].weight[0].tolist()
    made_from = [astuple(recipe()), FIRST_STAGE, FIRST_STAGE_SMALLER, head]
    return baselines.path_of(f"pruning-{name}", made_from)


def _load_or_make(net: FlowerNet, names: list[str], make: Callable) -> list[nn.Module]:
    """Load these networks, or make and store them: also where a file is damaged."""
    try:
        models = [load(path_of(net, name), net.model) for name in names]
    except MicrobudgetError:
        models = make()
        for name, model in zip(names, models, strict=True):
            save(model.eval(), path_of(net, name))
    place = {"device": settings.device(), "memory_format": torch.channels_last}
    return [model.to(**place) for model in models]


def _training_inputs(net: FlowerNet, model: nn.Module, first: int) -> torch.Tensor:
    """Every training image's and its crop's inputs of a stage: (2, images, …)."""
    images = net.flowers.train.images(net.size)
    frozen, views = model.features[:first], (images, mirrored_crops(images))
    return torch.stack([features.extract(frozen, v, net.preprocess) for v in views])
