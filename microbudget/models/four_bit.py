"""Weights stored in four bits: bitsandbytes' NF4 (Dettmers et al. 2023, QLoRA)."""

import torch
from torch import nn

from .. import settings
from ..compat import transformers
from ..errors import TrainingError


def nf4() -> dict:
    """Arguments of ``from_pretrained`` for NF4 with double quantization."""
    device = settings.device()
    return {
        "device_map": {"": device},
        "quantization_config": transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=(
                torch.bfloat16 if settings.fast_bf16(device) else torch.float32
            ),
        ),
    }


def layers(model: nn.Module) -> list[nn.Module]:
    """bitsandbytes' linear maps in four bits."""
    return [m for m in model.modules() if type(m).__name__ == "Linear4bit"]


def keep_trainable(model: nn.Module) -> nn.Module:
    """Forbid bitsandbytes to rearrange the weights for inference.

    On a CPU with bfloat16 it does so at the first evaluation, and gradients through
    that layout are silently wrong (version 0.50.2; torch only warns).

    Raises:
        TrainingError: they are rearranged already.
    """
    for layer in layers(model):
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise TrainingError(
                "These four-bit weights were rearranged for inference and can't be "
                "trained through any more: load the model again."
            )
        layer.support_avx512bf16_for_cpu = False
    return model


def for_inference(model: nn.Module) -> nn.Module:
    """Allow the rearrangement: faster on a CPU with bfloat16, no training after it."""
    fast = settings.fast_bf16("cpu") and settings.device() == "cpu"
    for layer in layers(model):
        layer.support_avx512bf16_for_cpu = fast
    return model
