"""A fake-quantized model on disk as what it stands for: int8 codes and scales."""

import os
from pathlib import Path

import torch
from torch import nn

from ..core.checkpoint import load_model, save_tensors
from ..core.errors import QuantizationError
from .fake_quant import fake_quantize, fake_quantized_layers

_SETTINGS = ("bits", "input_bits", "per_channel", "dynamic", "bias_is_corrected")


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write int8 codes, scales, biases and input ranges as one safetensors file.

    Fewer than eight bits still take a byte each here: nothing is packed.

    Raises:
        QuantizationError: not fake-quantized, or a weight has other than 2 to 8 bits.
    """
    layers = fake_quantized_layers(model)
    if not layers or not all(2 <= layer.bits <= 8 for layer in layers.values()):
        raise QuantizationError(
            "Only a fake-quantized model with weights of 2 to 8 bits is saved as int8: "
            "call fake_quantize(model) first."
        )
    state, settings = dict(model.state_dict()), {}
    for name, layer in layers.items():
        mapping = layer.weight_mapping()
        codes = mapping.quantize(state.pop(f"{name}.layer.weight"))
        state[f"{name}.codes"] = codes.to(torch.int8)
        state[f"{name}.scale"] = mapping.scale
        settings[name] = {key: getattr(layer, key) for key in _SETTINGS}
    return save_tensors(path, state, fake_quantized=settings, **metadata)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The fake-quantized model of ``save``, as ``core.checkpoint.load_model``.

    Args:
        model: the float architecture, its batch-norms folded.
    """
    return load_model(path, model, _fake_quantize)


def _fake_quantize(model: nn.Module, tensors: dict, metadata: dict) -> nn.Module:
    settings = metadata.pop("fake_quantized")
    new = fake_quantize(model, {name: own["bits"] for name, own in settings.items()})
    for name, layer in fake_quantized_layers(new).items():
        for key in _SETTINGS:
            setattr(layer, key, settings[name][key])
        codes, scale = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scale")
        tensors[f"{name}.layer.weight"] = codes.float() * scale
    return new
