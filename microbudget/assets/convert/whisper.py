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
_FLOATS = (np.float32, np.float16)
_QKV, _KV = ("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")


def whisper_from_ctranslate2(raw: Path, ready: Path) -> None:
    """Convert ``model.bin``, ``config.json`` and ``tokenizer.json`` in ``raw``.

    Writes ``model.safetensors`` with the stored precision, the model's, generation's
    and feature extractor's configuration, and the tokenizer.

    Raises:
        AssetError: another format or version, a truncated file, a tensor that is
            missing, of another shape, or not finite.
    """
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if not (raw / name).is_file():
            raise AssetError(f"The CTranslate2 folder holds no {name}.")
    variables = read(raw / "model.bin")
    try:
        tensors = _transformers_names(variables)
        config = _model_config(variables)
        meta = json.loads((raw / "config.json").read_text(encoding="utf-8"))
        tokenizer = _tokenizer(raw / "tokenizer.json")
        generation = _generation_config(config, meta, tokenizer)
    except (KeyError, IndexError, ValueError) as error:
        raise AssetError(
            f"The CTranslate2 folder is not a Whisper model ({error})."
        ) from error
    _check_shapes(tensors, config)

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
        AssetError: not such a file, another version, or one that ends early.
    """
    buffer, position = path.read_bytes(), 0

    def take(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{code}", buffer, position)
        position += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        nonlocal position
        length = take("H")  # with the closing zero
        value = buffer[position : position + length - 1].decode()
        position += length
        return value

    def tensor() -> np.ndarray:
        nonlocal position
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = np.dtype(_DTYPES[take("B")]), take("I")
        if size != dtype.itemsize * int(np.prod(shape)):
            raise ValueError(f"{size} bytes for the shape {shape}")
        value = np.frombuffer(buffer, dtype, size // dtype.itemsize, position)
        position += size
        return value.reshape(shape)

    variables = {}
    try:
        version = take("I")
        found = (version, text(), take("I")) if version == VERSION else (version,)
        if found != (VERSION, SPEC, REVISION):
            raise AssetError(
                f"{path.name} is not a CTranslate2 file of the kind this course reads: "
                f"expected version {VERSION}, {SPEC}, revision {REVISION}; found "
                f"{', '.join(map(str, found))}."
            )
        for _ in range(take("I")):
            name = text()
            variables[name] = tensor()
        for _ in range(take("I")):
            alias, target = text(), text()
            variables[alias] = variables[target]
        if position != len(buffer):
            raise ValueError(f"{len(buffer) - position} bytes too many")
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise AssetError(
            f"{path.name} is damaged or cut short at byte {position:,} of "
            f"{len(buffer):,} ({error}). Remove it and fetch it again."
        ) from error
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
        if variables[source].dtype not in _FLOATS:
            raise AssetError(
                f"{source} is stored as {variables[source].dtype}: only float16 and "
                "float32 conversions of Whisper can be read, not quantized ones."
            )
        rows = torch.from_numpy(variables[source].copy()).chunk(len(targets))
        for target, tensor in zip(targets, rows, strict=True):
            if not torch.isfinite(tensor).all():
                raise AssetError(f"{source} holds numbers that are not finite.")
            if target.endswith("k_proj.bias"):
                # Whisper's keys have no bias; CTranslate2 pads the fused one with zeros
                if tensor.any():
                    raise AssetError(f"{source} has a bias for keys: not Whisper's.")
                continue
            tensors[target] = tensor.clone()
    return tensors


def _check_bits(tensors: dict, variables: dict) -> None:
    """Fuse what was taken apart; every stored bit must be there again."""
    for source, targets in _pairs(variables):
        whole = variables[source]
        zeros = torch.zeros(whole.shape[0] // len(targets)).to(
            torch.from_numpy(whole[:0].copy()).dtype
        )
        fused = torch.cat([tensors.get(target, zeros) for target in targets]).numpy()
        if fused.dtype != whole.dtype or fused.tobytes() != whole.tobytes():
            raise AssetError(f"Converting changed {source}; please report it.")


def _model_config(variables: dict):

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


def _tokenizer(path: Path):

    added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    end = "<|endoftext|>"
    if end not in special:
        raise AssetError(f"{path.name} is not Whisper's tokenizer: it has no {end}.")
    # every special token must be named, or timestamps decode 2.12 s late
    return transformers.WhisperTokenizerFast(
        tokenizer_file=str(path),
        unk_token=end,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        extra_special_tokens=[token for token in special if token != end],
    )


def _generation_config(config, meta: dict, tokenizer):
    """What decoding needs, into both configurations."""

    number = tokenizer.convert_tokens_to_ids
    end, start = number("<|endoftext|>"), number("<|startoftranscript|>")
    tokens = {
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    for name, value in tokens.items():
        setattr(config, name, value)
    multilingual = config.vocab_size >= 51865
    extra = {}
    if multilingual:
        languages = tokenizer.convert_ids_to_tokens(meta["lang_ids"])
        extra["lang_to_id"] = dict(zip(languages, meta["lang_ids"], strict=True))
        tasks = ("transcribe", "translate")
        extra["task_to_id"] = {task: number(f"<|{task}|>") for task in tasks}
    return transformers.GenerationConfig(
        **tokens,
        **extra,
        max_length=config.max_target_positions,
        suppress_tokens=meta["suppress_ids"],
        begin_suppress_tokens=meta["suppress_ids_begin"],
        no_timestamps_token_id=number("<|notimestamps|>"),
        prev_sot_token_id=number("<|startofprev|>"),
        is_multilingual=multilingual,
        alignment_heads=meta["alignment_heads"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )


def _check_shapes(tensors: dict, config) -> None:

    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(config)
    expected = {name: p.shape for name, p in model.state_dict().items()}
    expected.pop("proj_out.weight")  # tied to the embeddings, stored once
    wrong = sorted(set(tensors) ^ set(expected))
    wrong += [n for n in tensors if n in expected and tensors[n].shape != expected[n]]
    if wrong:
        raise AssetError(
            f"The tensors don't make up a Whisper model: {', '.join(wrong[:4])} "
            f"({len(wrong)} in all are missing, unknown, or of another shape)."
        )
