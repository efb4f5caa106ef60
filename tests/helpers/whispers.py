"""A tiny random Whisper for tests, and its CTranslate2 file, written byte by byte."""

import json
import struct
from pathlib import Path

import numpy as np
import torch
import transformers

from microbudget import assets
from microbudget.models.whisper import Whisper

END, START, NO_TIMESTAMPS = 50256, 50257, 50362
QKV, KV = ("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")


def tiny(
    width=64, layers=3, vocabulary=51864, seconds=2, seed=0, positions=64
) -> Whisper:
    """Two heads, short windows, the real tokenizer; weights large enough to matter."""
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=2, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=96,
        decoder_ffn_dim=96, max_source_positions=50 * seconds,
        max_target_positions=positions, decoder_start_token_id=START, bos_token_id=END,
        eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.requires_grad_(False)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=START, eos_token_id=END, pad_token_id=END,
        bos_token_id=END, no_timestamps_token_id=NO_TIMESTAMPS, suppress_tokens=[1, 2],
        begin_suppress_tokens=[220, END], is_multilingual=False,
        return_timestamps=False, max_length=positions,
    )  # fmt: skip
    return Whisper("tiny random", model, processor())


def processor():
    return transformers.WhisperProcessor.from_pretrained(
        assets.fetch("whisper-tiny.en")
    )


def variables(whisper: Whisper, dtype=np.float16) -> dict[str, np.ndarray]:
    """CTranslate2's names and fused tensors, from transformers'."""
    state = {k: v.numpy().astype(dtype) for k, v in whisper.model.state_dict().items()}
    out: dict[str, np.ndarray] = {}

    def norm(target, source):
        out[f"{target}/gamma"] = state[f"{source}.weight"]
        out[f"{target}/beta"] = state[f"{source}.bias"]

    def linear(target, source, names):
        weights = [state[f"{source}.{n}.weight"] for n in names]
        zero = np.zeros(len(weights[0]), dtype)
        out[f"{target}/weight"] = np.concatenate(weights)
        biases = [state.get(f"{source}.{n}.bias", zero) for n in names]
        out[f"{target}/bias"] = np.concatenate(biases)

    for i in (1, 2):
        for part in ("weight", "bias"):
            out[f"encoder/conv{i}/{part}"] = state[f"model.encoder.conv{i}.{part}"]
    out["encoder/num_heads"] = np.array(2, np.int16)
    out["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        positions = f"{side}/position_encodings/encodings"
        out[positions] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        config = whisper.model.config
        for i in range(getattr(config, f"{side}_layers")):
            ct, hf = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            norm(f"{ct}/self_attention/layer_norm", f"{hf}.self_attn_layer_norm")
            linear(f"{ct}/self_attention/linear_0", f"{hf}.self_attn", QKV)
            linear(f"{ct}/self_attention/linear_1", f"{hf}.self_attn", ["out_proj"])
            norm(f"{ct}/ffn/layer_norm", f"{hf}.final_layer_norm")
            linear(f"{ct}/ffn/linear_0", hf, ["fc1"])
            linear(f"{ct}/ffn/linear_1", hf, ["fc2"])
            if side == "decoder":
                cross = f"{hf}.encoder_attn"
                norm(f"{ct}/attention/layer_norm", f"{cross}_layer_norm")
                linear(f"{ct}/attention/linear_0", cross, ["q_proj"])
                linear(f"{ct}/attention/linear_1", cross, KV)
                linear(f"{ct}/attention/linear_2", cross, ["out_proj"])
    return out


IDS = {np.float32: 0, np.int8: 1, np.int16: 2, np.int32: 3, np.float16: 4}


def binary(tensors: dict, version=6, spec="WhisperSpec", revision=3) -> bytes:
    """The bytes of ``model.bin``, with one alias at its end."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text(spec)]
    parts += [struct.pack("<II", revision, len(tensors))]
    for name, tensor in tensors.items():
        parts += [text(name), struct.pack("<B", tensor.ndim)]
        parts += [struct.pack("<I", size) for size in tensor.shape]
        parts += [struct.pack("<BI", IDS[tensor.dtype.type], tensor.nbytes)]
        parts += [tensor.tobytes()]
    parts += [struct.pack("<I", 1), text("decoder/projection/weight")]
    parts += [text("decoder/embeddings/weight")]
    return b"".join(parts)


def write_folder(folder: Path, content: bytes) -> Path:
    """A CTranslate2 folder around a ``model.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(content)
    meta = {"suppress_ids": [1, 2], "suppress_ids_begin": [220, END], "lang_ids": [],
            "alignment_heads": [[0, 0]]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(meta))
    source = assets.fetch("whisper-tiny.en") / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    return folder
