"""What Whisper computes, in plain functions on transformers' weights.

transformers' own classes insist on 30-second windows and grow their caches by copying.
These few lines take any window, keep their caches in place, and give the same numbers
(a test compares them). Shapes: b clips, f frames, t tokens, d width, h heads.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..data.audio import RATE
from .whisper import Whisper

WINDOW_SECONDS = 30.0  # seconds, Whisper's window


def log_mel(
    whisper: Whisper, clips: list, seconds: float = WINDOW_SECONDS
) -> torch.Tensor:
    """The mel spectrogram, padded with silence: (b, mel bands, 100 × seconds).

    Args:
        clips: arrays of float32 (samples,) at 16 kHz; what exceeds the window is cut.
        seconds: of the window, up to ``WINDOW_SECONDS`` in whole frames of 20 ms.
    """
    samples = round(seconds * RATE)
    features = whisper.processor.feature_extractor(
        clips, sampling_rate=RATE, max_length=samples, return_tensors="pt"
    )
    return features.input_features


def encode(encoder: nn.Module, mel: torch.Tensor) -> torch.Tensor:
    """(b, bands, 2f) -> (b, f, d): the states that the decoder attends to."""
    x = F.gelu(encoder.conv1(mel))  # (b, d, 2f)
    x = F.gelu(encoder.conv2(x)).transpose(1, 2)  # (b, f, d)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for layer in encoder.layers:
        y = layer.self_attn_layer_norm(x)
        x = x + _attend(layer.self_attn, y, *_keys_and_values(layer.self_attn, y))
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    return encoder.layer_norm(x)


@dataclass
class Cache:
    """Keys and values of the tokens so far and of the sound.

    Both are allocated for the longest transcript at once: nothing is copied to grow.

    Attributes:
        keys, values: (layers, b, h, room, d/h) of the tokens.
        length: tokens that are filled in; setting it back forgets the later ones.
        sound: a pair (keys, values) a layer, (b, h, f, d/h).
    """

    keys: torch.Tensor
    values: torch.Tensor
    sound: list[tuple[torch.Tensor, torch.Tensor]]
    length: int = 0

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these clips only."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.sound = [(k[rows], v[rows]) for k, v in self.sound]


def new_cache(decoder: nn.Module, states: torch.Tensor, room: int) -> Cache:
    """An empty cache for up to ``room`` tokens; the sound's keys are computed here."""
    heads = decoder.layers[0].self_attn.num_heads
    shape = (len(decoder.layers), len(states), heads, room, states.shape[2] // heads)
    sound = [
        tuple(t.contiguous() for t in _keys_and_values(layer.encoder_attn, states))
        for layer in decoder.layers
    ]
    return Cache(states.new_empty(shape), states.new_empty(shape), sound)


def decode(
    decoder: nn.Module,
    tokens: torch.Tensor,
    states: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    cache: Cache | None = None,
) -> torch.Tensor:
    """(b, t) tokens -> (b, t, d), one vector for each next token.

    Args:
        tokens: right-padded; no position sees what follows it.
        states: (b, f, d) of the encoder, unless a cache has them.
        mask: bool (b, f), False where the sound is padding.
        cache: tokens then continue those before; it is updated.
    """
    past, new = cache.length if cache else 0, tokens.shape[1]
    mask = None if mask is None else mask[:, None, None, :]  # (b, 1, 1, f)
    visible = None  # which tokens, those in the cache included, each new one sees
    if cache and new > 1:
        visible = torch.ones(new, past + new, dtype=torch.bool, device=tokens.device)
        visible = visible.tril(past)
    x = decoder.embed_tokens(tokens)
    x = x + decoder.embed_positions.weight[past : past + new]  # (b, t, d)
    for i, layer in enumerate(decoder.layers):
        own, cross = layer.self_attn, layer.encoder_attn
        y = layer.self_attn_layer_norm(x)
        k, v = _keys_and_values(own, y)
        if cache:
            cache.keys[i, :, :, past : past + new] = k
            cache.values[i, :, :, past : past + new] = v
            k = cache.keys[i, :, :, : past + new]
            v = cache.values[i, :, :, : past + new]
        x = x + _attend(own, y, k, v, visible, causal=cache is None)
        y = layer.encoder_attn_layer_norm(x)
        k, v = cache.sound[i] if cache else _keys_and_values(cross, states)
        x = x + _attend(cross, y, k, v, mask)
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    if cache:
        cache.length = past + new
    return decoder.layer_norm(x)


def project(decoder: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """(…, d) -> (…, vocabulary): logits, with the tied embeddings."""
    return F.linear(hidden, decoder.embed_tokens.weight)


def _heads(attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)  # (b, h, t, d/h)


def _keys_and_values(attention: nn.Module, x: torch.Tensor):
    return tuple(_heads(attention, f(x)) for f in (attention.k_proj, attention.v_proj))


def _attend(attention, x, k, v, mask=None, causal=False) -> torch.Tensor:
    q = _heads(attention, attention.q_proj(x))
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        out = _plain_attention(q, k, v, mask, causal)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def _plain_attention(q, k, v, mask, causal) -> torch.Tensor:
    """softmax(q·kᵀ/√d)·v as it is written, (b, h, t, d) each.

    torch's fused kernel is slow for bfloat16 on a CPU: ten times for a single query,
    twice for a whole window. One head at a time keeps a window's scores in the cache.
    """
    q = q * q.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if mask is None and q.shape[2] > 256:
        heads = zip(*(t.flatten(0, 1) for t in (q, k, v)), strict=True)
        done = [(a @ b.mT).softmax(-1) @ c for a, b, c in heads]
        return torch.stack(done).view_as(q)
    scores = q @ k.mT  # (b, h, t, s)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v
