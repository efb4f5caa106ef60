"""PyTorch's own library: torchao's weights in int8, for any model, on any device."""

import warnings

from torch import nn

from .calibrate import linear_layers


def int8_weights_(model: nn.Module) -> nn.Module:
    """Weights of linear layers in int8, a scale a row; changes ``model``."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layers = set(linear_layers(model).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what torchao will rename next
        quantize_(model, Int8WeightOnlyConfig(), lambda module, _: module in layers)
    return model
