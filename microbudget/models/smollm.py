"""The small language model: SmolLM2 (Allal et al. 2025, arXiv:2502.02737)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn

from .. import assets
from ..assets.folders import (
    clear_load_errors,
    require_files,
    require_finite,
    weights_id,
)
from ..core import settings
from ..core.errors import AssetError
from ..core.precision import fast_bf16
from .bitsandbytes import keep_trainable_, load_options

DEFAULT = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Llm:
    """A causal language model with its tokenizer.

    Attributes:
        model: transformers' module, in eval mode.
    """

    name: str
    model: nn.Module
    tokenizer: object
    card: str = ""


def load(
    name: str = DEFAULT,
    *,
    four_bit: bool = False,
    eight_bit: bool = False,
    double: bool = True,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
) -> Llm:
    """The small LLM of this profile, fetched first if it isn't here.

    Args:
        name: of the catalog.
        four_bit: linear layers in bitsandbytes' NF4.
        eight_bit: linear layers in bitsandbytes' int8.
        double: NF4's scales are quantized too.
        dtype: of the weights; default: bfloat16 where that is faster, else float32.
        folder: a transformers folder of your own, instead.

    Raises:
        AssetError: it can't be had, files are missing or damaged, or it is no Llama.
    """
    card = "" if folder else assets.get(name).card()
    name = Path(folder).name if folder else name
    folder = Path(folder) if folder else assets.fetch(name)
    device = settings.device()
    if dtype is None:
        dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
    # torch's fused attention is many times slower in bfloat16 on a CPU
    plain = device == "cpu" and dtype == torch.bfloat16
    require_files(folder, "LLM's")
    with clear_load_errors(folder):
        config = transformers.AutoConfig.from_pretrained(folder)
        if config.model_type != "llama":
            raise AssetError(f"{folder} holds a {config.model_type}, not a Llama.")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True,
            attn_implementation="eager" if plain else "sdpa",
            **load_options(four_bit, eight_bit, double),
        )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    require_finite(model, folder.name)
    if not (four_bit or eight_bit):
        model.to(device)
    keep_trainable_(model).eval().requires_grad_(False)
    model.base_id = f"{name}:{weights_id(folder)}"
    return Llm(name, model, tokenizer, card)


def generation_call(
    name: str, prompt_tokens: int, new_tokens: int, four_bit: bool = False
) -> Callable[[], None]:
    """A call that reads a prompt and writes an answer, for the course's timers.

    Args:
        name: of the catalog; float32, but for the layers in ``four_bit``.
        new_tokens: 1 times the reading alone.
    """
    model = load(name, four_bit=four_bit, dtype=torch.float32).model
    ids = (10 + torch.arange(prompt_tokens) % 100)[None].to(model.device)

    def call() -> None:
        tokens, past = ids, None
        for _ in range(new_tokens):
            out = model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, tokens = out.past_key_values, out.logits.argmax(-1)

    return call
