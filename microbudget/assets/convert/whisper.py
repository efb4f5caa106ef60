"""CTranslate2's Whisper (``model.bin``) -> an ordinary transformers folder.

The binary is read as data: a header, then named tensors, then aliases. Attention's
query, key and value are fused in it and are taken apart; nothing is transposed and no
number is changed, which the converter proves by fusing them again bit for bit.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from ...core.errors import AssetError

VERSION, SPEC, REVISION = 6, "WhisperSpec", 3
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # CTranslate2's ids
_QKV, _KV = ("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")


def whisper_from_ctranslate2(raw: Path, ready: Path) -> None:
    """Convert ``model.bin``, ``config.json`` and ``tokenizer.json`` in ``raw``.

    Writes ``model.safetensors`` with the stored precision, the model's, generation's
    and feature extractor's configuration, and the tokenizer.

    Raises:
        AssetError: another format or version.
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
    _check_bits(load_file(ready / "model.safetensors"), variables)


def read(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 Whisper binary, aliases included.

    Raises:
        AssetError: not such a file, or another version.
    """
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

        header = number("I"), text(), number("I")
        if header != (VERSION, SPEC, REVISION):
            raise AssetError(
                f"{path.name} is not a CTranslate2 file of the kind this course reads: "
                f"expected version {VERSION}, {SPEC}, revision {REVISION}; found "
                f"{', '.join(map(str, header))}."
            )
        variables = {}
        for _ in range(number("I")):
            name = text()
            variables[name] = tensor()
        for _ in range(number("I")):
            alias, target = text(), text()
            variables[alias] = variables[target]
    return variables


def _layers(variables: dict, side: str) -> int:
    names = {name.split("/")[1] for name in variables if name.startswith(f"{side}/")}
    return sum(name.startswith("layer_") and name[6:].isdigit() for name in names)


def _pairs(variables: dict) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(CTranslate2's name, the transformers names its rows are divided among)."""
    for i in (1, 2):
        for part in ("weight", "bias"):
            yield f"encoder/conv{i}/{part}", (f"model.encoder.conv{i}.{part}",)
    yield "decoder/embeddings/weight", ("model.decoder.embed_tokens.weight",)
    for side in ("encoder", "decoder"):
        root = f"model.{side}"
        positions = f"{side}/position_encodings/encodings"
        yield positions, (f"{root}.embed_positions.weight",)
        yield from _norm(f"{side}/layer_norm", f"{root}.layer_norm")
        for i in range(_layers(variables, side)):
            ct, hf = f"{side}/layer_{i}", f"{root}.layers.{i}"
            own, other = f"{ct}/self_attention", f"{ct}/attention"
            yield from _norm(f"{own}/layer_norm", f"{hf}.self_attn_layer_norm")
            yield from _linear(f"{own}/linear_0", f"{hf}.self_attn", _QKV)
            yield from _linear(f"{own}/linear_1", f"{hf}.self_attn", ("out_proj",))
            yield from _norm(f"{ct}/ffn/layer_norm", f"{hf}.final_layer_norm")
            yield from _linear(f"{ct}/ffn/linear_0", hf, ("fc1",))
            yield from _linear(f"{ct}/ffn/linear_1", hf, ("fc2",))
            if side == "decoder":
                cross = f"{hf}.encoder_attn"
                yield from _norm(f"{other}/layer_norm", f"{cross}_layer_norm")
                yield from _linear(f"{other}/linear_0", cross, ("q_proj",))
                yield from _linear(f"{other}/linear_1", cross, _KV)
                yield from _linear(f"{other}/linear_2", cross, ("out_proj",))


def _norm(source: str, target: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{source}/gamma", (f"{target}.weight",)
    yield f"{source}/beta", (f"{target}.bias",)


def _linear(source: str, target: str, names: tuple[str, ...]) -> Iterator:
    for part in ("weight", "bias"):
        yield f"{source}/{part}", tuple(f"{target}.{name}.{part}" for name in names)


def _transformers_names(variables: dict) -> dict[str, torch.Tensor]:
    tensors = {}
    for source, targets in _pairs(variables):
        rows = torch.from_numpy(variables[source].copy()).chunk(len(targets))
        for target, tensor in zip(targets, rows, strict=True):
            # Whisper's keys have no bias; CTranslate2 pads the fused one with zeros,
            # which the comparison of bits below shows.
            if not target.endswith("k_proj.bias"):
                tensors[target] = tensor.clone()
    return tensors


def _check_bits(tensors: dict, variables: dict) -> None:
    """Fuse what was taken apart; every stored bit must be there again."""
    for source, targets in _pairs(variables):
        whole = variables[source]
        zeros = np.zeros(len(whole) // len(targets), whole.dtype)
        fused = np.concatenate([
            tensors[target].numpy() if target in tensors else zeros
            for target in targets
        ])  # fmt: skip
        if fused.dtype != whole.dtype or fused.tobytes() != whole.tobytes():
            raise AssetError(f"Converting changed {source}; please report it.")


def _model_config(variables: dict) -> transformers.WhisperConfig:
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    heads = int(variables["encoder/num_heads"])
    hidden = variables["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    return transformers.WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=_layers(variables, "encoder"),
        decoder_layers=_layers(variables, "decoder"),
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
    for name, value in tokens.items():
        setattr(config, name, value)
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
