"""Speech to text with Whisper: batched, sorted by length, the sound encoded once.

Long recordings are cut in their quietest moments; where speech has a pause, no word is
cut, and none is transcribed twice.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core.errors import DataError, MicrobudgetError
from ..core.precision import use_bf16
from ..core.progress import bar
from ..data.audio import RATE, SILENCE_PEAK, require_sound
from ..data.batching import batches
from ..models import whisper_forward as forward
from ..models.whisper import Whisper
from .decoding import greedy_decode, text_of

TAIL, STEP = 4.0, 2.0  # seconds of silence after a clip, and of rounding up


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of sound after the encoder, for every decoder that shares the encoder.

    Attributes:
        positions: (recording, piece of it) for every row.
        states: (b, f, d).
    """

    positions: tuple[tuple[int, int], ...]
    states: torch.Tensor


def transcribe(
    whisper: Whisper, recordings: Sequence[np.ndarray], **options
) -> list[str]:
    """What is said in each recording, in the order given: ``decode`` of ``encode``.

    Args:
        recordings: float32 (samples,) at 16 kHz, of any length.
        options: of ``encode``: ``batch_size``, ``window``, ``precision``.

    Raises:
        DataError: a recording that is empty, not one row of numbers, or not finite.
    """
    return decode(whisper, encode(whisper, recordings, **options))


def encode(
    whisper: Whisper,
    recordings: Sequence[np.ndarray],
    *,
    batch_size: int = 8,
    window: str = "standard",
    precision: str = "auto",
) -> Iterator[EncodedBatch]:
    """The encoder's half of ``transcribe``, batch by batch, the longest pieces first.

    A list of it serves every decoder that shares this encoder: a frozen encoder is run
    once, whatever the number of students.

    Args:
        batch_size: pieces of up to 30 s that are worked on together.
        window: ``"standard"`` pads every piece to Whisper's 30 s. ``"clip"`` only to
            the longest piece of its batch and four seconds: several times faster, not
            what Whisper was trained on (measure it), and it needs that silent tail.
        precision: ``"auto"`` (bf16 where that is faster than float32), ``"bf16"``,
            ``"no"`` (float32).
    """
    whisper = in_precision(whisper, precision)
    pieces = [
        ((number, part), piece)
        for number, recording in enumerate(recordings)
        for part, piece in enumerate(_not_silent(_checked(recording, number)))
    ]
    # The first batch then needs the most memory: too little shows at once.
    pieces.sort(key=lambda piece: -len(piece[1]))
    with bar(None, "encoding", total=len(pieces), unit="piece") as shown:
        for rows in batches(len(pieces), batch_size):
            positions, clips = zip(*pieces[rows], strict=True)
            yield EncodedBatch(positions, encode_clips(whisper, clips, window))
            shown.update(len(clips))


def decode(
    whisper: Whisper,
    encoded: Iterable[EncodedBatch],
    max_tokens: int = 224,
) -> list[str]:
    """The decoder's half of ``transcribe``: a text for every recording.

    Args:
        max_tokens: as ``greedy_decode`` has it.
    """
    found: dict[tuple[int, int], str] = {}
    for batch in encoded:
        whisper = _with_decoder_in(whisper, batch.states.dtype)
        tokens = greedy_decode(whisper, batch.states, max_tokens)
        for position, own in zip(batch.positions, tokens, strict=True):
            found[position] = text_of(whisper, own)
    texts = defaultdict(list)  # recording -> its pieces' texts
    for (number, _), text in sorted(found.items()):
        texts[number].append(text)
    return [" ".join(filter(None, parts)) for parts in texts.values()]


@torch.inference_mode()
def encode_clips(
    whisper: Whisper, clips: Sequence[np.ndarray], window: str = "standard"
) -> torch.Tensor:
    """The encoder's states of clips of up to 30 s: (clips, frames, d)."""
    if window not in ("standard", "clip"):
        raise MicrobudgetError(f"window={window!r}: use 'standard' or 'clip'.")
    longest = max(map(len, clips)) / RATE
    seconds = window_seconds(longest) if window == "clip" else forward.WINDOW_SECONDS
    encoder = whisper.model.model.encoder
    like = encoder.conv1.weight
    mel = forward.log_mel(whisper, clips, seconds).to(like.device, like.dtype)
    # A CPU's cache copes with eight clips' activations.
    few = 8 if like.device.type == "cpu" else len(mel)
    parts = [forward.encode(encoder, mel[rows]) for rows in batches(len(mel), few)]
    return torch.cat(parts)


def window_seconds(seconds: float) -> float:
    """The window of a clip: a silent tail, or Whisper won't stop; then rounded up."""
    return min(forward.WINDOW_SECONDS, STEP * math.ceil((seconds + TAIL) / STEP))


def in_precision(whisper: Whisper, precision: str = "auto") -> Whisper:
    """The same model in the arithmetic asked for; a copy unless it is so already.

    Args:
        precision: ``"auto"``, ``"bf16"``, or ``"no"`` (as it is).
    """
    low = use_bf16(precision, whisper.model.device.type)
    if not low or whisper.model.dtype == torch.bfloat16:
        return whisper
    return replace(whisper, model=copy.deepcopy(whisper.model).to(torch.bfloat16))


def _with_decoder_in(whisper: Whisper, dtype: torch.dtype) -> Whisper:
    """The same model with its decoder in ``dtype``; the encoder is not copied."""
    if whisper.model.model.decoder.embed_tokens.weight.dtype == dtype:
        return whisper
    encoder = whisper.model.model.encoder
    model = copy.deepcopy(whisper.model, {id(encoder): encoder})
    model.model.decoder.to(dtype)
    return replace(whisper, model=model)


def _not_silent(recording: np.ndarray) -> list[np.ndarray]:
    """A recording's pieces without those of mere silence; always one at least.

    Whisper would invent words for a silent piece.
    """
    pieces = split_recording(recording)
    return [p for p in pieces if np.abs(p).max() >= SILENCE_PEAK] or pieces[:1]


def split_recording(samples: np.ndarray) -> list[np.ndarray]:
    """Pieces of at most 30 s that make up the recording, sample for sample.

    Cuts are made in the quietest tenth of a second of a window's last ten seconds.
    """
    longest, search, frame = round(forward.WINDOW_SECONDS * RATE), 10 * RATE, RATE // 10
    pieces = []
    while len(samples) > longest:
        end = min(longest, len(samples) - RATE)  # what is left lasts a second at least
        tail = samples[end - search : end].astype(np.float64)
        loudness = (tail.reshape(-1, frame) ** 2).sum(1)  # (frames,)
        # Of equally quiet frames the last is taken: fewer pieces.
        quietest = len(loudness) - 1 - int(loudness[::-1].argmin())
        cut = end - search + quietest * frame + frame // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def _checked(recording, number: int) -> np.ndarray:
    """A recording as float32 (samples,), or a clear error; silence may pass."""
    samples = np.asarray(recording)
    if samples.ndim != 1 or samples.dtype.kind != "f" or not len(samples):
        raise DataError(
            f"Recording {number} is an array of {samples.dtype} {samples.shape}; "
            "expected floats from −1 to 1, one row of samples at 16 kHz "
            "(mb.data.audio.prepare makes it)."
        )
    if not np.isfinite(samples).all():
        raise DataError(f"Recording {number} holds NaN or infinite samples.")
    require_sound(samples, f"recording {number}")
    return samples.astype(np.float32, copy=False)
