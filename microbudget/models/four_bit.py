"""Weights stored in four bits: bitsandbytes' NF4 (Dettmers et al. 2023, QLoRA)."""

import torch

from .. import settings
from ..compat import transformers


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
