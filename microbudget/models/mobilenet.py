"""MobileNetV2 (Sandler et al. 2018), as torchvision builds it, on real weights."""

from collections.abc import Callable

import torch
import torchvision
from torch import nn

from .. import assets
from ..core.modules import replace_layer
from .vision import Preprocess

NAME = "mobilenet-v2"


class SamePadConv2d(nn.Conv2d):
    """A stride-2 convolution with TensorFlow's 'same' padding.

    TensorFlow pads an even-sized image by (0, 1) and an odd-sized one by (1, 1),
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

    It takes images (batch, 3, height, width), preprocessed by ``preprocess()``.

    Args:
        pretrained: load the ImageNet backbone (fetched if it isn't here); else
            torchvision's random initialisation, symmetric padding and batch-norm
            settings, fit for training from scratch.

    Raises:
        AssetError: the weights are not here and can't be fetched.
    """
    model = torchvision.models.mobilenet_v2(num_classes=classes)
    if not pretrained:
        return model
    compute_like_pretrained_(model)
    state = assets.load(NAME)
    head = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
    model.load_state_dict({**state, **head})
    return model.eval()


def preprocess(size: int | None = None) -> Preprocess:
    """The scaling that the pretrained weights were trained with."""
    config = assets.config(NAME)
    return Preprocess(config["mean"], config["std"], size or config["size"])


def compute_like_pretrained_(model: nn.Module) -> nn.Module:
    """Give a MobileNetV2 the padding and batch-norm epsilon of this profile's weights.

    In place. Keras' weights want TensorFlow's padding.
    """
    config = assets.config(NAME)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = config["bn_eps"]
    if config["padding"] == "tensorflow":
        use_same_padding_(model)
    return model


def use_same_padding_(model: nn.Module) -> nn.Module:
    """Turn every stride-2 convolution into a ``SamePadConv2d``, in place."""
    for name, conv in list(model.named_modules()):
        if type(conv) is nn.Conv2d and conv.stride == (2, 2):
            new = SamePadConv2d(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                groups=conv.groups, bias=conv.bias is not None,
            )  # fmt: skip
            new.load_state_dict(conv.state_dict())
            replace_layer(model, name, new)
    return model


def forward_call(images: int = 1, size: int = 224) -> Callable[[], torch.Tensor]:
    """A call of the pretrained network on random images, prepared to be timed.

    It can be imported, so ``evaluation.FreshProcess`` can make it in another process.
    """
    model = mobilenet_v2(classes=10).eval()
    batch = torch.randn(images, 3, size, size)
    return torch.inference_mode()(lambda: model(batch))
