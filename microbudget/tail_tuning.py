"""Fine-tuning the last stages of a MobileNetV2, and the smaller one cut from it.

What the stages before them compute is kept, so an epoch costs only the tail.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from . import channels, features, lessons, mending, settings, shrinking, transfer
from .errors import MicrobudgetError
from .finetuned import FlowerNet

AT, LOW = 11, 9  # first stage that learns: of the whole network, of the smaller one


def maps(model: nn.Module, at: int, sets: Sequence, preprocess) -> list[torch.Tensor]:
    """What comes into stage ``at`` of ``model.features``, for sets of pictures."""
    frozen = model.features[:at]
    return [features.extract(frozen, pictures, preprocess) for pictures in sets]


def tail(model: nn.Module, at: int) -> nn.Sequential:
    """Stages from ``at`` on, the mean over space, the head; shared with the model."""
    stages = model.features[at:].requires_grad_(True)
    pooled = transfer.PooledDepths(stages, at=(len(stages) - 1,), unit=False)
    return nn.Sequential(pooled, model.classifier[1].requires_grad_(True))


def fine_tune(model: nn.Module, at: int, inputs, labels, epochs: int) -> None:
    """Train the tail in place, on ``maps`` (pictures, …) or (views, pictures, …)."""
    end = tail(model, at)
    transfer.fine_tune(
        end, inputs, labels, head=end[1], lr=5e-4, epochs=epochs, batch_size=32
    )


def folded(model: nn.Module) -> nn.Module:
    """As one would deploy it: batch-norms in the convolutions, channels last."""
    return features.fold_batchnorm(model).to(memory_format=torch.channels_last)


def pair(net: FlowerNet) -> tuple[nn.Module, nn.Module]:
    """The flower network fine-tuned, and the same without many of its channels.

    The second loses channels by price, is mended by least squares and fine-tuned as the
    first was: notebook 07 shows how. Made once on this machine, then loaded.
    """
    paths = _paths(net)
    try:
        return tuple(_loaded(path) for path in paths)
    except MicrobudgetError:  # not there, or damaged: made again
        pass
    plan, pictures = lessons.pruning(), net.flowers.train.pictures(net.size)
    both, labels = (pictures, mending.views(pictures)), net.flowers.train.labels
    whole = folded(net.model)
    seen = torch.stack(maps(whole, AT, both, net.preprocess))
    fine_tune(whole, AT, seen, labels, plan.tune)
    survey = channels.Survey(whole, pictures[:: plan.thin], net.preprocess)
    prices = channels.costs(whole, net.size)
    kept = survey.keep(prices, plan.budget, fixed=channels.PER_BLOCK)
    slim = shrinking.remove(whole, kept)
    mending.reconstruct(whole, slim, pictures[:: plan.mend], net.preprocess)
    seen = torch.stack(maps(slim, LOW, both, net.preprocess))
    fine_tune(slim, LOW, seen, labels, plan.retune)
    store(net, whole, slim)
    return whole, slim


def store(net: FlowerNet, whole: nn.Module, slim: nn.Module) -> tuple[Path, Path]:
    """Keep the two for ``pair``; their files."""
    paths = _paths(net)
    classes = list(net.flowers.classes)
    for path, model in zip(paths, (whole, slim), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        shrinking.save(model, path, classes=classes)
    return paths


def _loaded(path: Path) -> nn.Module:
    model, _ = shrinking.load(path)
    return model.to(settings.device(), memory_format=torch.channels_last)


def _paths(net: FlowerNet) -> tuple[Path, Path]:
    made_from = hashlib.sha256(repr((lessons.pruning(), AT, LOW)).encode())
    for tensor in net.model.state_dict().values():
        made_from.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    folder = settings.load().home / "runs" / "pruning"
    return tuple(
        folder / f"{name}-{made_from.hexdigest()[:12]}.safetensors"
        for name in ("whole", "slim")
    )
