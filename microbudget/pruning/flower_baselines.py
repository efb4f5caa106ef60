"""Fine-tuning the last stages of a MobileNetV2, and the smaller one cut from it.

What the stages before them compute is cached, so an epoch costs only the last stages.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import nn

from ..core import settings
from ..core.errors import MicrobudgetError
from ..models.vision import fold_batchnorm
from ..training import features, image_classifier
from ..training.baselines import FlowerNet
from .channel_reconstruction import reconstruct_channels_
from .channels import BLOCK_COST, channel_costs, channel_importance
from .checkpoint import load, save
from .mobilenet import remove_channels

_VERSION = 1  # of the recipes below: a new one makes old files worthless
FIRST_STAGE = 11  # from here on the whole network is fine-tuned
FIRST_STAGE_SMALLER = 9  # from here on the smaller one is


@dataclass(frozen=True)
class Recipe:
    """How the two networks are made.

    Attributes:
        importance_every: one of so many training images ranks the channels …
        reconstruct_every: … and one of so many is used to refit the projections.
        budget: fraction of the blocks' cost that is left.
        epochs: of fine-tuning the flower network.
        smaller_epochs: of fine-tuning the smaller one. The network that it is compared
            with is trained for half as many epochs more.
    """

    importance_every: int
    reconstruct_every: int
    budget: float
    epochs: int
    smaller_epochs: int


_RECIPES = {"mini": Recipe(4, 2, 0.55, 2, 4), "full": Recipe(1, 1, 0.55, 8, 12)}


def recipe() -> Recipe:
    """The recipe of this profile."""
    return _RECIPES[settings.load().profile]


def folded(model: nn.Module) -> nn.Module:
    """A copy as one would deploy it: batch-norms folded, channels last."""
    return fold_batchnorm(model).to(memory_format=torch.channels_last)


def stage_inputs(
    model: nn.Module, first: int, sets: Sequence, preprocess: Callable
) -> list[torch.Tensor]:
    """What comes into stage ``first`` of ``model.features``, for sets of images."""
    frozen = model.features[:first]
    return [features.extract(frozen, images, preprocess) for images in sets]


def last_stages(model: nn.Module, first: int) -> nn.Sequential:
    """The model's own stages from ``first`` on, the mean over space, and its head."""
    stages = model.features[first:].requires_grad_(True)
    pooled = image_classifier.MultiStageFeatures(stages, [len(stages) - 1], unit=False)
    return nn.Sequential(pooled, model.classifier[1].requires_grad_(True))


def fine_tune_(
    model: nn.Module, first: int, inputs: torch.Tensor, labels, epochs: int
) -> None:
    """Train the last stages in place, on ``stage_inputs``.

    Args:
        inputs: (images, channels, h, w) or (views, images, channels, h, w).
    """
    end = last_stages(model, first)
    config = image_classifier.StagesConfig(epochs=epochs, lr=5e-4, batch_size=32)
    image_classifier.fine_tune(end, inputs, labels, config, head=end[1])


def mirrored_crops(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Each image once more: mirrored, and cut to 70 to 100 % of its width.

    Args:
        images: uint8 (n, 3, h, w); so is the result.
    """
    generator = torch.Generator().manual_seed(seed)
    crops = torch.empty_like(images)
    height, width = images.shape[-2:]
    for i, (scale, *corner) in enumerate(
        torch.rand(len(images), 3, generator=generator)
    ):
        h, w = (max(1, int((0.7 + 0.3 * scale) * side)) for side in (height, width))
        top, left = int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1))
        cut = images[i : i + 1, :, top : top + h, left : left + w].flip(-1).float()
        whole = nn.functional.interpolate(cut, (height, width), mode="bilinear")
        crops[i] = whole[0].clamp(0, 255).to(torch.uint8)
    return crops


def fine_tuned(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The flower network, its last stages fine-tuned; and the same, trained longer.

    Longer by about as much as the smaller one of ``whole_and_smaller`` is fine-tuned,
    which is compared with both. Made once on this machine (set-up does it), then
    loaded.
    """
    try:
        return _load(net, "whole"), _load(net, "longer")
    except MicrobudgetError:  # not there yet, or damaged
        pass
    tuned = folded(net.model)
    inputs, labels = _training_inputs(net, tuned, FIRST_STAGE), net.flowers.train.labels
    fine_tune_(tuned, FIRST_STAGE, inputs, labels, recipe().epochs)
    longer = copy.deepcopy(tuned)
    more = max(1, recipe().smaller_epochs // 2)
    fine_tune_(longer, FIRST_STAGE, inputs, labels, more)
    store(net, tuned, "whole")
    store(net, longer, "longer")
    return tuned.eval(), longer.eval()


def whole_and_smaller(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The fine-tuned network, and the same without many of its channels.

    The second loses channels by their cost, is reconstructed by least squares and
    fine-tuned as the first was: notebook 07 shows how. Made once on this machine, then
    loaded.
    """
    tuned, _ = fine_tuned(net)
    try:
        return tuned, _load(net, "smaller")
    except MicrobudgetError:
        pass
    plan, train = recipe(), net.flowers.train
    images = train.images(net.size)
    some = images[:: plan.importance_every]
    importance = channel_importance(tuned, some, net.preprocess)
    costs = channel_costs(tuned, net.size)
    kept = importance.channels_to_keep(costs, plan.budget, BLOCK_COST)
    smaller = remove_channels(tuned, kept)
    some = images[:: plan.reconstruct_every]
    reconstruct_channels_(tuned, smaller, some, net.preprocess)
    first = FIRST_STAGE_SMALLER
    inputs = _training_inputs(net, smaller, first)
    fine_tune_(smaller, first, inputs, train.labels, plan.smaller_epochs)
    store(net, smaller, "smaller")
    return tuned, smaller.eval()


def store(net: FlowerNet, model: nn.Module, name: str) -> Path:
    """Keep one of these networks; its file."""
    return save(model, path_of(net, name), classes=list(net.flowers.classes))


def path_of(net: FlowerNet, name: str) -> Path:
    """Where a network is kept: "whole", "longer" or "smaller"."""
    made_by = (_VERSION, *astuple(recipe()), FIRST_STAGE, FIRST_STAGE_SMALLER)
    digest = hashlib.sha256(repr(made_by).encode())
    for tensor in net.model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    folder = settings.load().home / "runs" / "pruning"
    return folder / f"{name}-{digest.hexdigest()[:12]}.safetensors"


def _load(net: FlowerNet, name: str) -> nn.Module:
    model = load(path_of(net, name))
    return model.to(settings.device(), memory_format=torch.channels_last)


def _training_inputs(net: FlowerNet, model: nn.Module, first: int) -> torch.Tensor:
    """Every training image's and its crop's inputs of a stage: (2, images, …)."""
    images = net.flowers.train.images(net.size)
    views = (images, mirrored_crops(images))
    return torch.stack(stage_inputs(model, first, views, net.preprocess))
