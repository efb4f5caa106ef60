"""MobileNetV2 (Sandler et al. 2018), as torchvision builds it, on real weights."""

import torch
import torchvision
from torch import nn

from .. import assets
from .vision import Preprocess

__all__ = [
    "Preprocess",
    "SamePadConv2d",
    "compute_like_pretrained",
    "mobilenet_v2",
    "preprocess",
]

NAME = "mobilenet-v2"


class SamePadConv2d(nn.Conv2d):
    """A stride-2 convolution with TensorFlow's 'same' padding.

    TensorFlow pads an even-sized picture by (0, 1) and an odd-sized one by (1, 1),
    where torch always pads by (1, 1): every feature map would be shifted by a pixel
    against the one the weights were trained on.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        # (left, right, top, bottom)
        x = nn.functional.pad(x, (width % 2, 1, height % 2, 1))
        return super().forward(x)


def mobilenet_v2(classes: int, pretrained: bool = True) -> nn.Module:
    """``torchvision.models.mobilenet_v2`` with a new linear head of ``classes``.

    Args:
        classes: outputs of the head, at least 1.
        pretrained: load the ImageNet backbone (fetched if it isn't here); else
            torchvision's random initialisation, symmetric padding and batch-norm
            settings, fit for training from scratch.

    Returns:
        A module from pictures (batch, 3, height, width), preprocessed by
        ``preprocess()``, to logits (batch, classes).

    Raises:
        AssetError: the weights are not here and can't be fetched.
        ValueError: fewer than one class.
    """
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    model = torchvision.models.mobilenet_v2(num_classes=classes)
    if not pretrained:
        return model
    compute_like_pretrained(model)
    state = assets.load(NAME)
    head = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
    model.load_state_dict({**state, **head})
    return model.eval()


def preprocess(size: int | None = None) -> Preprocess:
    """The scaling that the pretrained weights were trained with."""
    config = assets.config(NAME)
    return Preprocess(config["mean"], config["std"], size or config["size"])


def compute_like_pretrained(model: nn.Module) -> nn.Module:
    """Give a MobileNetV2 the padding and batch-norm epsilon of this profile's weights.

    In place. Keras' weights want TensorFlow's padding: every stride-2 convolution
    becomes a ``SamePadConv2d``.
    """
    config = assets.config(NAME)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = config["bn_eps"]
    if config["padding"] == "tensorflow":
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Conv2d and child.stride == (2, 2):
                    setattr(parent, name, _same_pad(child))
    return model


def _same_pad(conv: nn.Conv2d) -> SamePadConv2d:
    new = SamePadConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
        groups=conv.groups, bias=conv.bias is not None,
    )  # fmt: skip
    new.load_state_dict(conv.state_dict())
    return new
