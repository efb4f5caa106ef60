"""From the encoder's states to tokens: Whisper's rules, and greedy decoding."""

import torch

from ..models import whisper_forward as forward
from ..models.whisper import Whisper


@torch.inference_mode()
def greedy_decode(
    whisper: Whisper,
    states: torch.Tensor,
    max_tokens: int = 224,
) -> list[list[int]]:
    """The likeliest token, again and again, until each clip has ended.

    Args:
        states: (b, f, d) of the encoder. Clips that have ended leave the batch.
        max_tokens: the most a clip may get; a model in a loop stops there.

    Returns:
        Tokens of every clip, without the prompt and the end.
    """
    decoder, rules = whisper.model.model.decoder, DecodingRules(whisper)
    tokens = rules.prompt.expand(len(states), -1)  # (b, prompt)
    room = min(tokens.shape[1] + max_tokens, len(decoder.embed_positions.weight))
    cache = forward.new_cache(decoder, states, room)
    decoded: list[list[int]] = [[] for _ in states]
    active = list(range(len(states)))  # the clips that the batch's rows belong to
    while active and cache.length + tokens.shape[1] < room:
        hidden = forward.decode(decoder, tokens, cache=cache)[:, -1]  # (b, d)
        is_first = cache.length == len(rules.prompt)
        logits = rules.suppress_(forward.project(decoder, hidden), is_first)  # (b, V)
        best = logits.argmax(-1)  # (b,)
        values = best.tolist()
        going_on = [row for row, token in enumerate(values) if token != rules.end]
        for row in going_on:
            decoded[active[row]].append(values[row])
        tokens = best[:, None]  # (b, 1)
        if len(going_on) < len(active):
            rows = torch.tensor(going_on, dtype=torch.long, device=states.device)
            tokens, active = tokens[rows], [active[row] for row in going_on]
            cache.keep(rows)
    return decoded


class DecodingRules:
    """Whisper's own rules of decoding, from its generation configuration.

    Attributes:
        prompt: (2,) start of transcript, no timestamps.
        end: the token that ends a transcript.
    """

    def __init__(self, whisper: Whisper):
        config, device = whisper.model.generation_config, whisper.model.device
        start = [config.decoder_start_token_id, config.no_timestamps_token_id]
        self.prompt = torch.tensor(start, device=device)
        self.end = config.eos_token_id
        self._never, self._not_first = (
            torch.tensor(tokens or [], device=device, dtype=torch.long)
            for tokens in (config.suppress_tokens, config.begin_suppress_tokens)
        )

    def suppress_(self, logits: torch.Tensor, is_first: bool) -> torch.Tensor:
        """(…, vocabulary) with what may not be decoded at −infinity, in place."""
        logits[..., self._never] = -torch.inf
        if is_first:  # neither a blank nor the end
            logits[..., self._not_first] = -torch.inf
        return logits


def text_of(whisper: Whisper, tokens: list[int]) -> str:
    """Tokens to text."""
    return whisper.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
