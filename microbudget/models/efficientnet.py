"""EfficientNet-Lite0 (Tan and Le 2019), as timm builds it, on real weights."""

import torchvision  # noqa: F401 - before timm, which imports it
from torch import nn

from .. import assets
from .vision import Preprocess

NAME = "efficientnet-lite0"


def efficientnet_lite0(classes: int) -> nn.Module:
    """timm's ``tf_efficientnet_lite0``, ImageNet backbone, new head of ``classes``.

    Returns:
        A module from pictures (batch, 3, height, width), preprocessed by
        ``preprocess()``, to logits (batch, classes).

    Raises:
        AssetError: the weights are not here and can't be fetched.
    """
    import timm

    model = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    state = assets.load(NAME)
    head = {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()}
    model.load_state_dict({**state, **head})
    return model.eval()


def stages(model: nn.Module) -> nn.Sequential:
    """The model without pooling and head, as a sequence: stem, 7 stages, last conv.

    Indices: 0 and 1 the stem's convolution and batch-norm, 2–8 the stages, 9 and 10
    the last convolution and batch-norm. Maps (batch, 3, h, w) to
    (batch, 1280, h/32, w/32).
    """
    return nn.Sequential(
        model.conv_stem, model.bn1, *model.blocks, model.conv_head, model.bn2
    )


def preprocess(size: int | None = None) -> Preprocess:
    """The scaling that the pretrained weights were trained with."""
    config = assets.config(NAME)
    return Preprocess(config["mean"], config["std"], size or config["size"])
