"""Fine-tuning the last stages of a MobileNetV2, and the smaller one cut from it.

What the stages before them compute is kept, so an epoch costs only the tail.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..core import settings
from ..core.errors import MicrobudgetError
from ..training import features, image_classifier
from ..training.baselines import FlowerNet
from . import channels, mobilenet, mobilenet_reconstruct

_VERSION = 1  # of the recipes below: a new one makes old files worthless
AT, LOW = 11, 9  # first stage that learns: of the whole network, of the smaller one


@dataclass(frozen=True)
class Recipe:
    """How the two networks are made.

    Attributes:
        thin, mend: of so many training images one ranks the channels, one reconstructs.
        budget: fraction of the blocks' cost that is left.
        tune, retune: epochs of the flower network, and of the smaller one. The network
            to compare that with is trained for half of the latter.
    """

    thin: int
    mend: int
    budget: float
    tune: int
    retune: int


_RECIPES = {"mini": Recipe(4, 2, 0.55, 2, 4), "full": Recipe(1, 1, 0.55, 8, 12)}


def recipe() -> Recipe:
    """The recipe of this profile."""
    return _RECIPES[settings.load().profile]


def maps(model: nn.Module, at: int, sets: Sequence, preprocess) -> list[torch.Tensor]:
    """What comes into stage ``at`` of ``model.features``, for sets of pictures."""
    frozen = model.features[:at]
    return [features.extract(frozen, pictures, preprocess) for pictures in sets]


def tail(model: nn.Module, at: int) -> nn.Sequential:
    """Stages from ``at`` on, the mean over space, the head; shared with the model."""
    stages = model.features[at:].requires_grad_(True)
    pooled = image_classifier.PooledDepths(stages, at=(len(stages) - 1,), unit=False)
    return nn.Sequential(pooled, model.classifier[1].requires_grad_(True))


def fine_tune(model: nn.Module, at: int, inputs, labels, epochs: int) -> None:
    """Train the tail in place, on ``maps`` (pictures, …) or (views, pictures, …)."""
    end = tail(model, at)
    image_classifier.fine_tune(
        end, inputs, labels, head=end[1], lr=5e-4, epochs=epochs, batch_size=32
    )


def folded(model: nn.Module) -> nn.Module:
    """As one would deploy it: batch-norms in the convolutions, channels last."""
    return features.fold_batchnorm(model).to(memory_format=torch.channels_last)


def whole(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The flower network, its last stages fine-tuned; and the same after more of that.

    More: about as long as the smaller one of ``pair`` is fine-tuned, which is compared
    with both. Made once on this machine (set-up does it), then loaded.
    """
    paths = [path_of(net, name) for name in ("whole", "longer")]
    try:
        return tuple(_loaded(path) for path in paths)
    except MicrobudgetError:  # not there, or damaged: made again
        pass
    plan, pictures = recipe(), net.flowers.train.images(net.size)
    tuned = folded(net.model)
    both = maps(
        tuned, AT, (pictures, mobilenet_reconstruct.views(pictures)), net.preprocess
    )
    seen, labels = torch.stack(both), net.flowers.train.labels
    fine_tune(tuned, AT, seen, labels, plan.tune)
    longer = copy.deepcopy(tuned)
    fine_tune(longer, AT, seen, labels, max(1, plan.retune // 2))
    for path, model in zip(paths, (tuned, longer), strict=True):
        store(net, model, path)
    return tuned.eval(), longer.eval()


def pair(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The fine-tuned network of ``whole``, and the same without many of its channels.

    The second loses channels by price, is mended by least squares and fine-tuned as the
    first was: notebook 07 shows how. Made once on this machine, then loaded.
    """
    tuned, _ = whole(net)
    try:
        return tuned, _loaded(path_of(net, "smaller"))
    except MicrobudgetError:
        pass
    plan, pictures = recipe(), net.flowers.train.images(net.size)
    survey = channels.Survey(tuned, pictures[:: plan.thin], net.preprocess)
    prices = channels.costs(tuned, net.size)
    kept = survey.keep(prices, plan.budget, fixed=channels.PER_BLOCK)
    slim = mobilenet.remove(tuned, kept)
    mobilenet_reconstruct.reconstruct(
        tuned, slim, pictures[:: plan.mend], net.preprocess
    )
    both = maps(
        slim, LOW, (pictures, mobilenet_reconstruct.views(pictures)), net.preprocess
    )
    fine_tune(slim, LOW, torch.stack(both), net.flowers.train.labels, plan.retune)
    store(net, slim, path_of(net, "smaller"))
    return tuned, slim.eval()


def store(net: FlowerNet, model: nn.Module, path: Path) -> Path:
    """Keep one of these networks; its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return mobilenet.save(model, path, classes=list(net.flowers.classes))


def _loaded(path: Path) -> nn.Module:
    model, _ = mobilenet.load(path)
    return model.to(settings.device(), memory_format=torch.channels_last)


def path_of(net: FlowerNet, name: str) -> Path:
    """Where a network is kept: "whole", "longer" or "smaller"."""
    plan = recipe()
    made_by = (plan.thin, plan.mend, plan.budget, plan.tune, plan.retune, AT, LOW)
    made_from = hashlib.sha256(repr((_VERSION, *made_by)).encode())
    for tensor in net.model.state_dict().values():
        made_from.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    folder = settings.load().home / "runs" / "pruning"
    return folder / f"{name}-{made_from.hexdigest()[:12]}.safetensors"
