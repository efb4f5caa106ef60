"""Removing hidden channels of MobileNetV2: a smaller dense network, really.

An inverted residual widens its input to hidden channels (1×1), filters each on its own
(depthwise) and projects them back (1×1). A hidden channel lives inside its block: it
can go, with its row of the expansion, its filter, and its column of the projection,
and no other block notices. Zeroing the *column* makes removal exact. Zeroing the
channel's filters does not: batch-norm gives the silent channel its bias, and the
projection reads that.

Kept channels are a dictionary, block's path -> boolean (hidden,), ``True`` to keep. A
block with a residual may lose all of them: what it adds is then a constant.
"""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from safetensors import safe_open
from torch import nn

from ..core.errors import MicrobudgetError, TrainingError
from ..models import mobilenet
from ..models.vision import fold_batchnorm
from ..training import image_classifier

Kept = Mapping[str, torch.Tensor]
_Block = torchvision.models.mobilenetv2.InvertedResidual


class Bypass(nn.Module):
    """What is left of a residual block without channels: it adds a constant.

    Attributes:
        bias: (1, channels, 1, 1).
    """

    def __init__(self, bias: torch.Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone().view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The inverted residuals that have hidden channels of their own, by path.

    The first one doesn't expand: its hidden channels are its input.

    Raises:
        TrainingError: there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _Block) and len(module.conv) == 4
    }
    if not found:
        raise TrainingError("This model has no inverted residuals that expand.")
    return found


def widths(model: nn.Module) -> dict[str, int]:
    """Hidden channels of every block, in order; 0 where it is bypassed."""
    own = blocks(model)
    return {
        name: 0 if name not in own else own[name].conv[2].in_channels
        for name, module in model.named_modules()
        if name in own or isinstance(module, Bypass)
    }


def mask(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy whose projections don't see the other channels: same size, same speed.

    Raises:
        TrainingError: an unknown block, a mask that doesn't fit or keeps nothing.
    """
    _require(model, kept)
    model = copy.deepcopy(model)
    own = blocks(model)
    with torch.no_grad():
        for name, keep in kept.items():
            if name in own:
                weight = own[name].conv[2].weight
                weight[:, ~keep.to(weight.device)] = 0
    return model


def remove(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy without the other channels: computes what ``mask``'s does, but smaller.

    Works before and after batch-norms are folded.

    Raises:
        TrainingError: as ``mask``.
    """
    _require(model, kept)
    model = copy.deepcopy(model)
    own = blocks(model)
    for name, keep in kept.items():
        if name not in own:
            continue
        if not keep.any():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Bypass(_constant(own[name])))
            continue
        expand, depthwise, project = (own[name].conv[i] for i in range(3))
        rows = torch.nonzero(keep.cpu()).flatten()
        for stage in (expand, depthwise):
            _outputs(stage[0], rows)
            if isinstance(stage[1], nn.BatchNorm2d):
                _norm(stage[1], rows)
        depthwise[0].groups = depthwise[0].in_channels = len(rows)
        index = rows.to(project.weight.device)
        project.weight = _parameter(project.weight, project.weight[:, index])
        project.in_channels = len(rows)
    return model


def save(model: nn.Module, path: str | os.PathLike, **card) -> Path:
    """Write a smaller MobileNetV2: its weights, and the shape that they need.

    Raises:
        TrainingError: the card isn't plain text and numbers.
    """
    shape = {"widths": widths(model), "classes": model.classifier[1].out_features,
             "padding": _padding(model), "eps": _eps(model)}  # fmt: skip
    try:
        return image_classifier.save(model, path, shape=shape, **card)
    except TypeError as error:
        raise TrainingError(f"A card holds text, numbers, lists: {error}.") from error


def load(path: str | os.PathLike) -> tuple[nn.Module, dict]:
    """Build the model that ``save`` wrote, in eval mode, and give the card beside it.

    Raises:
        MicrobudgetError: no such file, none of ours, weights that don't fit.
    """
    path = Path(path)
    if not path.is_file():
        raise MicrobudgetError(f"There is no model at {path}: save one first.")
    try:
        with safe_open(path, "pt") as file:
            shape = json.loads(file.metadata()["card"])["shape"]
        model = mobilenet.mobilenet_v2(int(shape["classes"]), pretrained=False)
        kept = {}
        for name, width in widths(model).items():
            kept[name] = torch.arange(width) < int(shape["widths"][name])
        model = remove(model, kept)
        mobilenet.compute_like_pretrained(model)
        if shape["eps"] is None:
            model = fold_batchnorm(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = float(shape["eps"])
        padding = shape["padding"]
    except MicrobudgetError:
        raise
    except Exception as error:  # safetensors and json raise errors of their own
        raise MicrobudgetError(
            f"{path} is no model of shrinking.save ({type(error).__name__}: {error})."
        ) from error
    if padding != _padding(model):
        raise MicrobudgetError(
            f"{path} was made from weights that pad like {padding}; this profile's pad "
            f"like {_padding(model)}. Load it in the profile it was saved in."
        )
    return model, image_classifier.load(model, path)


def _padding(model: nn.Module) -> str:
    same = any(isinstance(m, mobilenet.SamePadConv2d) for m in model.modules())
    return "tensorflow" if same else "torch"


def _eps(model: nn.Module) -> float | None:
    """Of the batch-norms; None where they are folded."""
    found = [m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return found[0] if found else None


def _require(model: nn.Module, kept: Kept) -> None:
    known = widths(model)
    for name, keep in kept.items():
        if name not in known:
            raise TrainingError(
                f"No block {name!r} to remove from: there are {', '.join(known)}."
            )
        if keep.dtype != torch.bool or keep.shape != (known[name],):
            raise TrainingError(
                f"{name}: expected a boolean for each of its {known[name]} channels, "
                f"got {keep.dtype} {tuple(keep.shape)}."
            )
        block = blocks(model).get(name)
        if not keep.any() and block is not None and not block.use_res_connect:
            raise TrainingError(
                f"{name} would lose every channel and has no residual: keep one."
            )


def _constant(block: nn.Module) -> torch.Tensor:
    """What the projection gives when it sees zeros: (channels,)."""
    project, norm = block.conv[2], block.conv[3]
    bias = torch.zeros(project.out_channels, device=project.weight.device)
    bias = bias if project.bias is None else project.bias
    if isinstance(norm, nn.BatchNorm2d):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias + scale * (bias - norm.running_mean)
    return bias


def _outputs(conv: nn.Conv2d, rows: torch.Tensor) -> None:
    """Keep these filters of a convolution, in place."""
    index = rows.to(conv.weight.device)
    conv.weight = _parameter(conv.weight, conv.weight[index])
    if conv.bias is not None:
        conv.bias = _parameter(conv.bias, conv.bias[index])
    conv.out_channels = len(rows)


def _norm(norm: nn.BatchNorm2d, rows: torch.Tensor) -> None:
    index = rows.to(norm.weight.device)
    norm.weight = _parameter(norm.weight, norm.weight[index])
    norm.bias = _parameter(norm.bias, norm.bias[index])
    norm.running_mean = norm.running_mean[index].clone()
    norm.running_var = norm.running_var[index].clone()
    norm.num_features = len(rows)


def _parameter(old: nn.Parameter, new: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(new.detach().clone(), requires_grad=old.requires_grad)
