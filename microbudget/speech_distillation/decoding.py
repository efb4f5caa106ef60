"""From sound that was heard to tokens: Whisper's rules, and greedy decoding."""

import torch

from ..core.errors import AssetError, MicrobudgetError
from ..models import whisper_forward as forward
from ..models.whisper import Whisper

_PHRASE = 4  # tokens; two of them in a row are a loop


@torch.inference_mode()
def greedy(
    whisper: Whisper,
    states: torch.Tensor,
    max_tokens: int = 224,
    guard: bool = False,
) -> list[list[int]]:
    """The likeliest token, again and again, until each clip has ended.

    Args:
        states: (b, f, d) of the encoder. Clips that have ended leave the batch.
        max_tokens: the most a clip may get; a model in a loop stops there.
        guard: never write a token that closes a loop (``closing_a_loop``).

    Returns:
        Tokens of every clip, without the prompt and the end.

    Raises:
        MicrobudgetError: ``max_tokens`` below 1.
    """
    if max_tokens < 1:
        raise MicrobudgetError(f"max_tokens={max_tokens}: it must be at least 1.")
    decoder, rules = whisper.model.model.decoder, Rules(whisper)
    tokens = rules.prompt.expand(len(states), -1)
    room = min(tokens.shape[1] + max_tokens, len(decoder.embed_positions.weight))
    cache = forward.new_cache(decoder, states, room)
    written: list[list[int]] = [[] for _ in states]
    going = list(range(len(states)))
    while going and cache.length + tokens.shape[1] < room:
        hidden = forward.decode(decoder, tokens, cache=cache)[:, -1]  # (b, d)
        first = cache.length == len(rules.prompt)
        logits = rules.apply(forward.project(decoder, hidden), first)  # (b, V)
        if guard:
            for row, clip in enumerate(going):
                logits[row, closing_a_loop(written[clip])] = -torch.inf
        best = logits.argmax(-1)  # (b,)
        values = best.tolist()
        stay = [i for i, token in enumerate(values) if token != rules.end]
        for i in stay:
            written[going[i]].append(values[i])
        tokens = best[:, None]
        if len(stay) < len(going):
            rows = torch.tensor(stay, dtype=torch.long, device=states.device)
            tokens, going = tokens[rows], [going[i] for i in stay]
            cache.keep(rows)
    return written


def closing_a_loop(written: list[int]) -> list[int]:
    """Tokens that would repeat what was just written, block for block.

    A phrase of four tokens or more may not follow itself at once; a shorter one may
    stand there three times. A student that learned little falls into such loops, and
    one of them can cost more than all its other errors. (Whisper's own program looks
    at how well a text compresses, and decodes again.)
    """
    found = []
    for length in range(1, len(written) + 1):
        copies = 2 if length >= _PHRASE else 4
        same = length * (copies - 1) - 1  # tokens that repeat already
        if len(written) < same + length:
            if length >= _PHRASE:
                break
            continue
        if written[-same:] == written[-same - length : -length]:
            found.append(written[-length])
    return found


class Rules:
    """Whisper's own rules of decoding, from its generation configuration.

    Attributes:
        prompt: (2,) start of transcript, no timestamps; with language and task between
            them for a multilingual model.
        end: the token that ends a transcript.
    """

    def __init__(self, whisper: Whisper):
        config = whisper.model.generation_config
        device = whisper.model.device
        try:
            start = [config.decoder_start_token_id]
            if getattr(config, "is_multilingual", False):  # English is asked for
                start += [config.lang_to_id["<|en|>"], config.task_to_id["transcribe"]]
            start.append(config.no_timestamps_token_id)
        except (AttributeError, KeyError) as error:
            raise AssetError(
                f"{whisper.name}: its generation_config.json lacks {error}. Fetch the "
                "model's folder again, with that file."
            ) from error
        ends = config.eos_token_id
        self.prompt = torch.tensor(start, device=device)
        self.end = ends[0] if isinstance(ends, list) else ends

        def tokens(name: str) -> torch.Tensor:
            own = getattr(config, name, None) or []
            return torch.tensor(own, device=device, dtype=torch.long)

        self._never = tokens("suppress_tokens")
        self._not_first = tokens("begin_suppress_tokens")

    def apply(self, logits: torch.Tensor, first: bool) -> torch.Tensor:
        """(…, vocabulary) with what may not be written at −infinity, in place."""
        logits[..., self._never] = -torch.inf
        if first:  # neither a blank nor the end
            logits[..., self._not_first] = -torch.inf
        return logits


def text_of(whisper: Whisper, tokens: list[int]) -> str:
    """Tokens to text."""
    return whisper.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
