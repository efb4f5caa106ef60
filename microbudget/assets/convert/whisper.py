"""CTranslate2's Whisper (``model.bin``) -> an ordinary transformers folder.

The binary is read as data: a header, then named tensors, then aliases. Attention's
query, key and value are fused in it and are taken apart; nothing is transposed and no
number is changed. The catalog has the digest of the result.
"""

import json
import re
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # CTranslate2's ids
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(.+)")
# CTranslate2's modules -> transformers'; of a fused one, those its rows belong to
_OUTSIDE = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/position_encodings": "encoder.embed_positions",
    "encoder/layer_norm": "encoder.layer_norm",
    "decoder/embeddings": "decoder.embed_tokens",
    "decoder/position_encodings": "decoder.embed_positions",
    "decoder/layer_norm": "decoder.layer_norm",
}
_INSIDE = {
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "self_attention/linear_0": [f"self_attn.{part}_proj" for part in "qkv"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
_PARTS = {"weight": "weight", "gamma": "weight", "encodings": "weight",
          "bias": "bias", "beta": "bias"}  # fmt: skip


def whisper_from_ctranslate2(raw: Path, ready: Path) -> None:
    """Convert ``model.bin``, ``config.json`` and ``tokenizer.json`` in ``raw``.

    Writes ``model.safetensors`` with the stored precision, the model's, generation's
    and feature extractor's configuration, and the tokenizer.
    """
    variables = read(raw / "model.bin")
    tensors = _transformers_names(variables)
    config = _model_config(variables)
    meta = json.loads((raw / "config.json").read_text(encoding="utf-8"))
    tokenizer = _tokenizer(raw / "tokenizer.json")
    generation = _generation_config(config, meta, tokenizer)
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(config)
    # Raises on another shape; the output layer is the embeddings, stored once.
    found = model.load_state_dict(tensors, strict=False, assign=True)
    assert found == (["proj_out.weight"], []), found

    save_file(tensors, ready / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(ready)
    generation.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    transformers.WhisperFeatureExtractor(
        feature_size=config.num_mel_bins
    ).save_pretrained(ready)


def read(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 Whisper binary, aliases included."""
    with open(path, "rb") as file:

        def number(code: str) -> int:
            size = struct.calcsize(f"<{code}")
            return struct.unpack(f"<{code}", file.read(size))[0]

        def text() -> str:
            return file.read(number("H"))[:-1].decode()  # without the closing zero

        def tensor() -> np.ndarray:
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = _DTYPES[number("B")], number("I")
            return np.frombuffer(file.read(size), dtype).reshape(shape)

        header = number("I"), text(), number("I")  # version, kind, its revision
        assert header == (6, "WhisperSpec", 3), f"{path.name}: {header}"
        variables = {}
        for _ in range(number("I")):
            name = text()
            variables[name] = tensor()
        for _ in range(number("I")):
            alias, target = text(), text()
            variables[alias] = variables[target]
    return variables


def _transformers_names(variables: dict) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, variable in variables.items():
        module, _, part = name.rpartition("/")
        if layer := _LAYER.fullmatch(module):
            side, number, inner = layer.groups()
            root, targets = f"model.{side}.layers.{number}", _INSIDE[inner]
        elif module in _OUTSIDE:
            root, targets = "model", [_OUTSIDE[module]]
        else:
            continue  # a setting, or the output layer, which is the embeddings
        rows = torch.from_numpy(variable.copy()).chunk(len(targets))
        for target, tensor in zip(targets, rows, strict=True):
            # Whisper's keys have no bias: CTranslate2 pads the fused one with zeros.
            if target.endswith("k_proj") and part == "bias":
                assert not tensor.any(), name
                continue
            tensors[f"{root}.{target}.{_PARTS[part]}"] = tensor.clone()
    return tensors


def _model_config(variables: dict) -> transformers.WhisperConfig:
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    heads = int(variables["encoder/num_heads"])
    hidden = variables["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    found = {match.groups()[:2] for match in map(_LAYER.match, variables) if match}
    layers = Counter(side for side, _ in found)
    return transformers.WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden,
        architectures=["WhisperForConditionalGeneration"],
    )


def _tokenizer(path: Path) -> transformers.WhisperTokenizerFast:
    added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    end = "<|endoftext|>"
    # Every special token must be named, or timestamps decode 2.12 s late.
    return transformers.WhisperTokenizerFast(
        tokenizer_file=str(path),
        unk_token=end,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        extra_special_tokens=[token for token in special if token != end],
    )


def _generation_config(config, meta: dict, tokenizer) -> transformers.GenerationConfig:
    """What decoding needs, into both configurations; the model speaks English only."""
    number = tokenizer.convert_tokens_to_ids
    end = number("<|endoftext|>")
    tokens = {
        "decoder_start_token_id": number("<|startoftranscript|>"),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    config.update(tokens)
    return transformers.GenerationConfig(
        **tokens,
        max_length=config.max_target_positions,
        suppress_tokens=meta["suppress_ids"],
        begin_suppress_tokens=meta["suppress_ids_begin"],
        no_timestamps_token_id=number("<|notimestamps|>"),
        prev_sot_token_id=number("<|startofprev|>"),
        is_multilingual=False,
        alignment_heads=meta["alignment_heads"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
