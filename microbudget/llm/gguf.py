"""A Llama in transformers' layout -> a GGUF file in float16.

The names and the order of rows are llama.cpp's. Its rotary embedding turns neighbouring
pairs of a head, transformers' turns the first half against the second: the rows of
queries and keys are put into its order.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from ..core.errors import QuantizationError
from ..core.files import atomic_path
from ..models.smollm import Llm

_F16_LARGEST = 65504.0


def write_gguf(llm: Llm, path: str | os.PathLike) -> Path:
    """Write a model and its tokenizer; matrices in float16, vectors in float32.

    Raises:
        QuantizationError: no plain Llama, a tokenizer that llama.cpp doesn't have,
            weights that float16 can't hold, a full disk. Nothing half-written is left.
    """
    path = Path(path)
    _require_plain_llama(llm.model)
    tokenizer = _tokenizer(llm.tokenizer, llm.model.config.vocab_size)
    with atomic_path(path, QuantizationError) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        _write_metadata(writer, llm, tokenizer)
        for name, array in _tensors(llm.model):
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _require_plain_llama(model) -> None:
    """Raise for what would be written without complaint and then computed wrongly."""
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    for wrong, what in (
        (config.model_type != "llama", f"the architecture {config.model_type!r}"),
        (rope != "default", f"a rotary embedding of type {rope!r}"),
        (config.hidden_act != "silu", f"the activation {config.hidden_act!r}"),
    ):
        if wrong:
            raise QuantizationError(
                f"This model has {what}. Only plain Llamas can be written here; for "
                "others use llama.cpp's own convert_hf_to_gguf.py."
            )


def to_llama_cpp_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, (heads·d, …): halves of a head -> neighbouring pairs."""
    half = len(weight) // heads // 2
    paired = weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2)
    return paired.reshape(weight.shape)


def _tensors(model) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's name and the numbers of every tensor."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise QuantizationError(
                f"llama.cpp has no name for the tensor {name!r}: write the file from "
                "the original model, before its layers are replaced."
            )
        array = tensor.detach().float().cpu().numpy()
        if not np.isfinite(array).all() or np.abs(array).max() > _F16_LARGEST:
            raise QuantizationError(
                f"{name} holds NaN, infinity or numbers beyond float16's range: load "
                "the model again, or train it again with a smaller learning rate."
            )
        for part, n in heads.items():
            if part in name:
                array = to_llama_cpp_rows(array, n)
        yield gguf_name, array.astype(np.float32 if array.ndim == 1 else np.float16)


def _write_metadata(writer: gguf.GGUFWriter, llm: Llm, tokenizer: dict) -> None:
    config = llm.model.config
    rope = (config.rope_parameters or {}).get("rope_theta", 10_000.0)
    head_size = getattr(config, "head_dim", None)
    head_size = head_size or config.hidden_size // config.num_attention_heads
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(llm.name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(rope)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer["pre"])
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["types"])
    writer.add_token_merges(tokenizer["merges"])
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)
    ids = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id,
           "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}  # fmt: skip
    for kind, add in ids.items():
        if (token := getattr(llm.tokenizer, f"{kind}_token_id", None)) is not None:
            add(token)
    if llm.tokenizer.chat_template:
        writer.add_chat_template(llm.tokenizer.chat_template)


def _tokenizer(tokenizer, vocabulary_size: int) -> dict:
    """Tokens by id, their types, merges, and llama.cpp's name for how words are split.

    Raises:
        QuantizationError: not a byte-level BPE, or one that splits words in another
            way: llama.cpp would read other tokens than the model was trained on.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, splitting = content["model"], json.dumps(content["pre_tokenizer"])
    if model["type"] != "BPE" or "ByteLevel" not in splitting:
        raise QuantizationError(
            f"A {model['type']} tokenizer can't be written: only byte-level BPE is "
            "known here. Use llama.cpp's own convert_hf_to_gguf.py."
        )
    pre = "smollm" if '"individual_digits": true' in splitting else "gpt-2"
    unknown = ('"Split"', '"individual_digits": false', '"add_prefix_space": true')
    if content["normalizer"] or any(part in splitting for part in unknown):
        raise QuantizationError(
            "This tokenizer changes or splits words in a way that isn't known here: "
            "llama.cpp would read other tokens. Use its own convert_hf_to_gguf.py."
        )
    vocabulary = dict(model["vocab"])
    added = {token["id"]: token for token in content["added_tokens"]}
    vocabulary |= {token["content"]: i for i, token in added.items()}
    tokens = sorted(vocabulary, key=vocabulary.get)
    if [vocabulary[t] for t in tokens] != list(range(len(tokens))):
        raise QuantizationError("The tokenizer's ids have gaps.")
    unused = vocabulary_size - len(tokens)  # rows of the embedding that no token uses
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * unused
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocabulary_size)]
    for i, token in added.items():
        special = token["special"]
        kinds[i] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {"pre": pre, "tokens": tokens, "types": kinds, "merges": merges}
