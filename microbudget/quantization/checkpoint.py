"""A fake-quantized model on disk as what it stands for: int8 codes and scales."""

import os
from pathlib import Path

import torch
from torch import nn

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import QuantizationError
from .fake_quant import fake_quantize, fake_quantized_layers

_SETTINGS = ("bits", "input_bits", "per_channel", "dynamic")


def save(model: nn.Module, path: str | os.PathLike) -> Path:
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
    return save_tensors(path, state, fake_quantized=settings)


def load(path: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The fake-quantized model of ``save``, in eval mode.

    Args:
        model: the float architecture, its batch-norms folded; weights don't matter.

    Raises:
        QuantizationError: the file of another architecture, or of another ``save``.
            MicrobudgetError: no file, or a damaged one.
    """
    state, metadata = load_tensors(path)
    settings = metadata.get("fake_quantized", {})
    new = fake_quantize(model, {name: own["bits"] for name, own in settings.items()})
    for name, layer in fake_quantized_layers(new).items():
        for key in _SETTINGS:
            setattr(layer, key, settings[name][key])
        codes, scale = state.pop(f"{name}.codes"), state.pop(f"{name}.scale")
        state[f"{name}.layer.weight"] = codes.float() * scale
    try:
        new.load_state_dict(state)
    except RuntimeError as error:
        raise QuantizationError(
            f"{path} holds another architecture than this model. Build the model as it "
            f"was built before saving, and fold its batch-norms. ({error})"
        ) from error
    return new.eval()
