"""A language model's GGUF file -> transformers' folder layout."""

from pathlib import Path

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from ..folders import require_finite
from ..gguf_file import read_gguf


def llm_from_gguf(raw: Path, ready: Path) -> None:
    """Unpack a GGUF file's weights to float16, with its tokenizer."""
    (path,) = raw.rglob("*.gguf")
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    require_finite(model, path.name)
    if read_gguf(path).metadata.get("tokenizer.ggml.pre") == "smollm":
        # Digits one by one, before anything else, as the file says. transformers
        # (5.23) leaves that out, and then reads other tokens than the model was
        # trained on wherever white space stands before a digit.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    model.half().save_pretrained(ready)
    tokenizer.save_pretrained(ready)
