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
_BYTES = ("ByteLevel", None, False)
# (kind, digits one by one, a space before the text) -> llama.cpp's name for it
_SPLITTING = {(_BYTES,): "gpt-2", (("Digits", True, None), _BYTES): "smollm"}


def write_gguf(llm: Llm, path: str | os.PathLike) -> Path:
    """Write a model and its tokenizer; matrices in float16, vectors in float32.

    Raises:
        QuantizationError: no plain Llama, a tokenizer that llama.cpp doesn't have,
            weights that float16 can't hold, a full disk. Nothing half-written is left.
    """
    path = Path(path)
    _require_plain_llama(llm.model.config)
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


def _require_plain_llama(config) -> None:
    """Raise for what would be written without complaint and then computed wrongly."""
    if not (
        config.model_type == "llama"
        and config.rope_parameters["rope_type"] == "default"
        and config.hidden_act == "silu"
    ):
        raise QuantizationError(
            "Only plain Llamas (SiLU, a rotary embedding that isn't scaled) can be "
            "written here: for others use llama.cpp's own convert_hf_to_gguf.py."
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
        if not np.abs(array).max() <= _F16_LARGEST:  # NaN isn't, either
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
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(llm.name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer["pre"])
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["types"])
    writer.add_token_merges(tokenizer["merges"])
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)
    for key in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        if (token := getattr(llm.tokenizer, key)) is not None:
            getattr(writer, f"add_{key}")(token)
    if llm.tokenizer.chat_template:
        writer.add_chat_template(llm.tokenizer.chat_template)


def _tokenizer(tokenizer, vocabulary_size: int) -> dict:
    """Tokens by id, their types, merges, and llama.cpp's name for how words are split.

    Raises:
        QuantizationError: not a byte-level BPE, or one that splits words in another
            way: llama.cpp would read other tokens than the model was trained on.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, splitting = content["model"], content["pre_tokenizer"]
    steps = tuple(
        (step["type"], step.get("individual_digits"), step.get("add_prefix_space"))
        for step in splitting.get("pretokenizers", [splitting])
    )
    if model["type"] != "BPE" or content["normalizer"] or steps not in _SPLITTING:
        raise QuantizationError(
            f"This tokenizer ({model['type']}) changes or splits words in a way that "
            "isn't known here: llama.cpp would read other tokens. Use its own "
            "convert_hf_to_gguf.py."
        )
    added = {token["id"]: token for token in content["added_tokens"]}
    vocabulary = model["vocab"] | {t["content"]: i for i, t in added.items()}
    tokens = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[t] for t in tokens] == list(range(len(tokens))), "ids have gaps"
    unused = vocabulary_size - len(tokens)  # rows of the embedding that no token uses
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * unused
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocabulary_size)]
    for i, token in added.items():
        special = token["special"]
        kinds[i] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    pre = _SPLITTING[steps]
    return {"pre": pre, "tokens": tokens, "types": kinds, "merges": merges}
