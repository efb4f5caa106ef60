"""Weights stored by bitsandbytes: NF4 (Dettmers et al. 2023, QLoRA), and int8."""

import torch
import transformers
from torch import nn

from ..core import settings
from ..core.errors import TrainingError
from ..core.precision import fast_bf16


def load_options(
    four_bit: bool = False, eight_bit: bool = False, double: bool = True
) -> dict:
    """Arguments of ``from_pretrained``: how the linear layers' weights are stored.

    Args:
        four_bit: as NF4.
        eight_bit: as LLM.int8 (Dettmers et al. 2022): weights and inputs in eight bits
            a number, rows and columns with a scale each; the few inputs of large
            magnitude are multiplied in full precision.
        double: double quantization, NF4's scales are stored in eight bits themselves.
    """
    if not (four_bit or eight_bit):
        return {}
    fast = fast_bf16(settings.device())
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=four_bit,
        load_in_8bit=eight_bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16 if fast else torch.float32,
    )
    return {"device_map": {"": settings.device()}, "quantization_config": config}


def four_bit_layers(model: nn.Module) -> list[nn.Module]:
    """bitsandbytes' linear layers in four bits."""
    return [m for m in model.modules() if type(m).__name__ == "Linear4bit"]


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight is stored in four or eight bits by bitsandbytes."""
    return any(
        type(module).__name__ in ("Linear4bit", "Linear8bitLt")
        for module in model.modules()
    )


def require_floats(model: nn.Module, what: str) -> None:
    """Raise a TrainingError if weights are quantized: ``what`` needs them as floats."""
    if is_quantized(model):
        raise TrainingError(
            f"{what} needs the weights in floats, and this model's are in four or "
            "eight bits: load it without four_bit and eight_bit."
        )


def is_four_bit(model: nn.Module) -> bool:
    """Whether any linear layer is stored in four bits."""
    return bool(four_bit_layers(model))


def keep_trainable_(model: nn.Module) -> nn.Module:
    """Forbid bitsandbytes to rearrange the weights for inference, in place.

    On a CPU with bfloat16 it does so at the first evaluation, and gradients through
    that layout are silently wrong (version 0.50.2; torch only warns).

    Raises:
        TrainingError: they are rearranged already.
    """
    for layer in four_bit_layers(model):
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise TrainingError(
                "These four-bit weights were rearranged for inference and can't be "
                "trained through any more: load the model again."
            )
        layer.support_avx512bf16_for_cpu = False
    return model
