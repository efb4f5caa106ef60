"""What every image model shares: preprocessing, and folding batch-norm away."""

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..core.modules import is_shared, replace_layer


@dataclass(frozen=True)
class Preprocess:
    """uint8 images -> the floats a network was trained on.

    Attributes:
        mean, std: of the network's training input, on the [0, 1] scale; mean = std =
            0.5 gives Keras' x / 127.5 - 1.
        size: height and width in pixels the image is brought to.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) uint8 -> (batch, 3, size, size) float32.

        Raises:
            ValueError: not a batch of RGB images, or not uint8: scaled floats would
                be scaled twice, the classic near-black image.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "expected uint8 images of shape (batch, 3, height, width), got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        x = images.float()
        if x.shape[-2:] != (self.size, self.size):
            x = nn.functional.interpolate(
                x, (self.size, self.size), mode="bilinear", antialias=True
            )
        mean = torch.tensor(self.mean, device=x.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=x.device).view(1, 3, 1, 1) * 255
        return (x - mean) / std


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose batch-norms are folded into the convolutions.

    At inference batch-norm is a multiplication and an addition per channel, which a
    convolution's weight and bias can do for nothing (Jacob et al. 2018, eq. 14):
    W' = W γ/√(σ²+ε),  b' = β - μ γ/√(σ²+ε). Outputs are equal up to rounding.

    A batch-norm is folded when all it gets is what one convolution gives, and nothing
    else uses the two: torch.fx traces that. A network that can't be traced (it branches
    on its inputs) is folded where a batch-norm is its parent's next child after a
    convolution, and both have one name only.
    """
    model = copy.deepcopy(model).eval()
    try:
        pairs = _traced_pairs(model)
    except Exception:  # of any type: it is the network's own code that runs
        pairs = _neighbours(model)
    for name, norm in pairs:
        conv, bn = model.get_submodule(name), model.get_submodule(norm)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            replace_layer(model, name, fuse_conv_bn_eval(conv, bn))
            replace_layer(model, norm, nn.Identity())
    return model


def _traced_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Layers of which one is called once, and gives its result only to the other."""
    nodes = [n for n in _LayerTracer().trace(model).nodes if n.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    once = [n for n in nodes if calls[n.target] == 1 and len(n.users) == 1]
    users = [(node.target, next(iter(node.users))) for node in once]
    return [
        (name, user.target)
        for name, user in users
        if user.op == "call_module" and calls[user.target] == 1
    ]


def _neighbours(model: nn.Module) -> list[tuple[str, str]]:
    """Names of children that follow each other and are used under this name only."""
    return [
        (f"{name}.{a}".lstrip("."), f"{name}.{b}".lstrip("."))
        for name, parent in model.named_modules()
        for (a, first), (b, second) in pairwise(list(parent.named_children()))
        if not is_shared(model, first) and not is_shared(model, second)
    ]


class _LayerTracer(torch.fx.Tracer):
    """Follows a network down to its layers, subclasses of torch's among them."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_layer = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        return is_layer or super().is_leaf_module(module, name)


def small_cnn(classes: int, channels: tuple[int, ...] = (32, 64, 128, 256)):
    """A small network to train from scratch: strided convolutions, then the mean.

    Args:
        channels: of each 3 × 3 convolution, which halves height and width.
    """

    def block(inside: int, outside: int) -> nn.Sequential:
        conv = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())

    blocks = [block(*pair) for pair in pairwise((3, *channels))]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)]
    return nn.Sequential(*blocks, *head)
