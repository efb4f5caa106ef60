"""Distilling Whisper's decoder: the teacher's lessons are prepared once, then taught.

The encoder is frozen, so its states are computed once a clip; the teacher's answers and
its likeliest words are too. A training step is then the student's two layers alone.
Gandhi, von Platen and Rush 2023, Distil-Whisper (arXiv:2311.00430).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset

from ..core import settings
from ..core.errors import DataError, TrainingError
from ..core.precision import use_bf16
from ..core.progress import bar
from ..data.audio import RATE
from ..data.batching import batches
from ..data.speech import Clip
from ..evaluation.memory import release_memory
from ..evaluation.wer import word_errors
from ..models import whisper_forward as forward
from ..models.whisper import Whisper
from ..training import loop
from ..training.losses import TopK, fused_loss, top_k
from .decoding import Rules, greedy, text_of
from .transcribe import STEP, in_precision, listen, window_for

TOP_K = 32  # of the teacher's words kept a token
MAX_WER = 0.10  # Distil-Whisper's filter of pseudo-labels


@dataclass(frozen=True)
class Lesson:
    """One clip as the student meets it.

    Attributes:
        states: (f, d) of the frozen encoder, in the precision they were computed in.
        labels: int64 (t,) what the teacher wrote, with its end.
        kept: the teacher's top k for each of them.
        text: the teacher's transcript; wer: against what was said.
    """

    states: torch.Tensor
    labels: torch.Tensor
    kept: TopK
    text: str
    wer: float


@dataclass(frozen=True)
class Batch:
    """Lessons side by side; L is the longest's number of tokens, n all of them.

    Attributes:
        tokens: int64 (b, L) the prompt and what was written so far, right-padded.
        states: (b, f, d) and mask: bool (b, f), False where the sound is padding.
        keep: bool (b, L), True where a next token is to be learned.
        labels: int64 (n,). kept: classes and probabilities (n, k).
    """

    tokens: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor
    keep: torch.Tensor
    labels: torch.Tensor
    kept: TopK

    def to(self, device, **options) -> "Batch":
        moved = [t.to(device) for t in (self.tokens, self.states, self.mask, self.keep)]
        kept = TopK(self.kept.classes.to(device), self.kept.probabilities.to(device))
        return Batch(*moved, self.labels.to(device), kept)


class Lessons(Dataset):
    """A teacher's lessons; those that fail the filter are counted, not taught.

    Attributes:
        dropped: the teacher's transcripts whose WER was too high.
    """

    def __init__(self, lessons: list[Lesson], prompt: torch.Tensor, dropped=()):
        self.lessons, self.dropped = lessons, list(dropped)
        self._prompt = prompt.cpu()

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, i: int) -> Lesson:
        return self.lessons[i]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each, by which they are batched."""
        return [len(lesson.labels) for lesson in self.lessons]

    def bytes(self) -> int:
        """Of everything that is cached."""
        return sum(
            t.numel() * t.element_size()
            for x in self.lessons
            for t in (x.states, x.labels, x.kept.classes, x.kept.probabilities)
        )

    def collate(self, lessons: Sequence[Lesson]) -> Batch:
        """Side by side, padded to the longest."""
        rows, first = len(lessons), len(self._prompt)
        longest = max(len(x.labels) for x in lessons) + first - 1
        frames = max(len(x.states) for x in lessons)
        tokens = torch.zeros(rows, longest, dtype=torch.long)
        keep = torch.zeros(rows, longest, dtype=torch.bool)
        states = lessons[0].states.new_zeros(rows, frames, lessons[0].states.shape[1])
        mask = torch.zeros(rows, frames, dtype=torch.bool)
        for row, x in enumerate(lessons):
            end = len(x.labels) + first - 1
            tokens[row, :end] = torch.cat([self._prompt, x.labels[:-1]])
            keep[row, first - 1 : end] = True
            states[row, : len(x.states)] = x.states
            mask[row, : len(x.states)] = True
        classes = torch.cat([x.kept.classes for x in lessons])
        probabilities = torch.cat([x.kept.probabilities for x in lessons])
        labels = torch.cat([x.labels for x in lessons])
        return Batch(tokens, states, mask, keep, labels, TopK(classes, probabilities))


@torch.no_grad()  # not inference mode: what is cached is trained on
def prepare(
    teacher: Whisper,
    clips: Sequence[Clip],
    *,
    max_wer: float = MAX_WER,
    batch_size: int = 16,
    precision: str = "auto",
) -> Lessons:
    """Let the teacher hear every clip once: states, pseudo-labels, likeliest words.

    Windows are no longer than the clips (and their silent tail). What the teacher
    misheard, by its WER against the text, is dropped; so are clips of over 30 s.

    Raises:
        DataError: no clips, one that can't be read, or none that passes the filter.
        EvaluationError: a text without words.
    """
    every, clips = clips, [clip for clip in clips if clip.seconds <= forward.LONGEST]
    if not clips:
        raise DataError(
            f"There are no clips to learn from: {len(every)} were given, none of them "
            "of up to 30 s."
        )
    whisper = in_precision(teacher, precision)
    decoder, rules = whisper.model.model.decoder, Rules(whisper)
    lessons: dict[int, Lesson] = {}
    dropped = [clip.text for clip in every if clip.seconds > forward.LONGEST]
    # one block for all states: hundreds of small ones would scatter over the memory
    # (a rounded length may miss its window by one step; untouched room costs nothing)
    room = sum(_frames(clip) for clip in clips) + len(clips) * round(50 * STEP)
    like = whisper.model.model.encoder.conv1.weight
    block = torch.empty(room, whisper.model.config.d_model, dtype=like.dtype)
    filled = 0
    with bar(None, "the teacher listens", total=len(clips), unit="clip") as shown:
        for rows in _of_one_window(clips, batch_size):
            chosen = [clips[i] for i in rows]
            sound = [clip.samples() for clip in chosen]
            states = listen(whisper, sound, "clip")
            written = greedy(whisper, states)
            kept = _likeliest(decoder, rules, states, written)
            for j, (i, clip) in enumerate(zip(rows, chosen, strict=True)):
                text = text_of(whisper, written[j])
                wer = word_errors([clip.text], [text]).wer
                if wer > max_wer:
                    dropped.append(text)
                else:
                    labels = torch.tensor([*written[j], rules.end])
                    own = block[filled : filled + states.shape[1]].copy_(states[j])
                    filled += len(own)
                    lessons[i] = Lesson(own, labels, kept[j], text, wer)
                shown.update(1)
            release_memory()
    if not lessons:
        raise DataError(
            f"The teacher misheard all {len(clips)} clips by more than {max_wer:.0%}: "
            "do the texts belong to the recordings?"
        )
    # in the clips' order, whatever the batches were
    whole = [lessons[i] for i in sorted(lessons)]
    return Lessons(whole, rules.prompt, dropped)


def _frames(clip: Clip) -> int:
    return round(window_for(clip.seconds) * RATE / forward.SAMPLES_A_FRAME)


def _of_one_window(clips: Sequence[Clip], batch_size: int) -> Iterator[list[int]]:
    """Indices of clips whose windows are equally long: batches without padding."""
    windows: dict[int, list[int]] = {}
    for i, clip in enumerate(clips):
        windows.setdefault(_frames(clip), []).append(i)
    for _, same in sorted(windows.items(), reverse=True):
        for rows in batches(len(same), batch_size):
            yield same[rows]


def _likeliest(decoder, rules, states, written) -> list[TopK]:
    """The teacher's top k for every token it wrote, its end included."""
    lengths = [len(tokens) + 1 for tokens in written]
    first = len(rules.prompt)
    tokens = torch.zeros(
        len(written), first + max(lengths) - 1, dtype=torch.long, device=states.device
    )
    tokens[:, :first] = rules.prompt
    for row, own in enumerate(written):
        tokens[row, first : first + len(own)] = torch.tensor(own, dtype=torch.long)
    hidden = forward.decode(decoder, tokens, states)
    out = []
    for row, length in enumerate(lengths):
        logits = forward.project(decoder, hidden[row, first - 1 : first - 1 + length])
        kept = top_k(logits, TOP_K)
        out.append(TopK(kept.classes.cpu(), kept.probabilities.cpu()))
    return out


class Learner(nn.Module):
    """A student's decoder as the training loop sees it: a batch in, (n, d) out."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: Batch) -> torch.Tensor:
        states = batch.states
        if not torch.is_autocast_enabled(states.device.type):
            states = states.float()
        return forward.decode(self.decoder, batch.tokens, states, batch.mask)[
            batch.keep
        ]


def distil(
    student: Whisper,
    lessons: Lessons,
    *,
    steps: int = 400,
    batch_size: int = 16,
    lr: float = 2.5e-4,
    weighting: str = "paper",
    precision: str = "auto",
    seed: int = 0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> loop.History:
    """Teach a student in place: loss = α_KL·T²·KL + α_PL·CE, its layers only.

    Args:
        steps: rounded to whole passes over the lessons.
        weighting: ``"paper"`` or ``"code"``: which of the two terms weighs more.
            Their loss is a mean over tokens.
        evaluate: called after each pass, as in ``training.fit``.

    Raises:
        TrainingError: fewer steps than one pass takes, or the loss is not finite.
        SettingsError: a precision that doesn't exist.
    """
    if batch_size < 1:
        raise TrainingError(f"batch_size={batch_size}: it must be at least 1.")
    a_pass = -(-len(lessons) // batch_size)
    if steps < a_pass / 2:
        raise TrainingError(
            f"{steps} steps are less than one pass over {len(lessons)} lessons "
            f"({a_pass} steps): ask for more, or pass fewer lessons."
        )
    low = use_bf16(precision, settings.device())
    decoder = student.model.model.decoder
    cast: dict[torch.device, torch.Tensor] = {}  # made where the loop put the model

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        hidden = model(batch).float()
        if hidden.device not in cast:
            weight = decoder.embed_tokens.weight.detach()
            cast[hidden.device] = weight.to(torch.bfloat16) if low else weight
        value, _ = fused_loss(
            hidden, cast[hidden.device], batch.labels, batch.kept, weighting,
            rows=64 if low else 256,  # what was fastest on laptops
        )  # fmt: skip
        return value

    def after_a_pass(model: nn.Module) -> dict[str, float]:
        release_memory()
        return evaluate(model) if evaluate else {}

    student.model.to(settings.device())  # whole: its encoder would stay behind

    return loop.fit(
        Learner(decoder),
        lessons,
        loss,
        loop.TrainConfig(
            epochs=max(1, round(steps / a_pass)),
            batch_size=batch_size,
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
            ),
            schedule="linear",
            warmup=0.1,
            precision="bf16" if low else "no",
            max_grad_norm=1.0,
            lengths=lessons.lengths,
            seed=seed,
            description="distilling",
        ),
        evaluate=after_a_pass,
    )
