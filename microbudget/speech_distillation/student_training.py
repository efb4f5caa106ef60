"""Distilling Whisper's decoder: the teacher's targets are cached once, then trained on.

The encoder is frozen, so its states are computed once a clip; the teacher's transcript
and its last hidden states are too. A training step then takes the student's layers, and
the output table, which both share, twice: the soft targets are exact.
Gandhi, von Platen and Rush 2023, Distil-Whisper (arXiv:2311.00430).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..core import settings
from ..core.errors import DataError, TrainingError
from ..core.precision import use_bf16
from ..core.progress import bar
from ..data.batching import batches
from ..data.speech import Clip
from ..evaluation.memory import release_memory
from ..evaluation.wer import word_errors
from ..models import whisper_forward as forward
from ..models.whisper import Whisper
from ..training.loop import History, TrainConfig, fit
from ..training.losses import TEMPERATURE, chunked_loss, distillation_loss
from .decoding import DecodingRules, greedy_decode, text_of
from .recognition import encode_clips, in_precision, window_seconds

MAX_WER = 0.10  # Distil-Whisper's filter of pseudo-labels


@dataclass(frozen=True)
class DistilConfig:
    """How a student is trained: loss = α_soft·T²·KL + α_hard·CE, a mean over tokens.

    Attributes:
        steps: rounded to whole epochs.
        alpha_soft, alpha_hard: weights of the teacher's probabilities and of its
            transcript; the default is the paper's, section 4.
        temperature: T, which softens both models' probabilities.
        precision: ``"auto"`` (bf16 where that is faster), ``"bf16"``, ``"no"``.
    """

    steps: int = 400
    batch_size: int = 16
    lr: float = 2.5e-4
    alpha_soft: float = 0.8
    alpha_hard: float = 1.0
    temperature: float = TEMPERATURE
    precision: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class TeacherTargets:
    """What the student is given for one clip.

    Attributes:
        states: (f, d) of the frozen encoder, in the precision they were computed in.
        labels: int64 (t,) the teacher's transcript, with its end.
        hidden: float16 (t, d) the teacher's last hidden states at these positions; the
            output table (V, d) makes its logits of them.
    """

    states: torch.Tensor
    labels: torch.Tensor
    hidden: torch.Tensor


class DistilBatch(NamedTuple):
    """Clips side by side; L is the longest's number of tokens, n all labels together.

    Attributes:
        tokens: int64 (b, L) the prompt and the transcript so far, right-padded.
        states: (b, f, d) and mask: bool (b, f), False where the sound is padding.
        predicts: bool (b, L), True where the next token is one of the labels.
        labels: int64 (n,). hidden: (n, d) of the teacher.
    """

    tokens: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor
    predicts: torch.Tensor
    labels: torch.Tensor
    hidden: torch.Tensor


class DistilDataset(Dataset):
    """A teacher's targets, clip by clip.

    Attributes:
        lengths: tokens of each, by which they are batched.
        dropped: the teacher's transcripts whose error rate was too high to train on.
    """

    def __init__(
        self,
        targets: list[TeacherTargets],
        prompt: torch.Tensor,
        dropped: Sequence[str] = (),
    ):
        self.targets, self.prompt, self.dropped = targets, prompt.cpu(), dropped
        self.lengths = [len(clip.labels) for clip in targets]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> TeacherTargets:
        return self.targets[i]

    def bytes(self) -> int:
        """Of everything that is cached."""
        parts = [(clip.states, clip.labels, clip.hidden) for clip in self.targets]
        return sum(t.nbytes for tensors in parts for t in tensors)

    def collate(self, clips: Sequence[TeacherTargets]) -> DistilBatch:
        """Side by side, padded to the longest."""
        inputs = [torch.cat([self.prompt, clip.labels[:-1]]) for clip in clips]
        tokens = pad_sequence(inputs, batch_first=True)  # (b, L)
        states = pad_sequence([clip.states for clip in clips], batch_first=True)
        # The prompt's last token predicts the first label, and so on to the last input.
        ends = torch.tensor([[len(row)] for row in inputs])  # (b, 1)
        position = torch.arange(tokens.shape[1])
        predicts = (position >= len(self.prompt) - 1) & (position < ends)  # (b, L)
        frames = torch.tensor([[len(clip.states)] for clip in clips])
        return DistilBatch(
            tokens=tokens,
            states=states,
            mask=torch.arange(states.shape[1]) < frames,
            predicts=predicts,
            labels=torch.cat([clip.labels for clip in clips]),
            hidden=torch.cat([clip.hidden for clip in clips]),
        )


@torch.no_grad()
def prepare_targets(
    teacher: Whisper,
    clips: Sequence[Clip],
    *,
    from_text: bool = False,
    precision: str = "auto",
) -> DistilDataset:
    """Run the teacher over every clip once: states, pseudo-labels, hidden states.

    Windows are no longer than the clips (and their silent tail). Transcripts with a
    word error rate above ``MAX_WER`` against the text are dropped; so are clips of
    over 30 s.

    Args:
        from_text: the labels are the clips' own texts instead of the transcripts, for
            comparison; the same clips are dropped.

    Raises:
        DataError: no clip of up to 30 s, one that can't be read, or none that passes
            the filter.
    """
    whisper = in_precision(teacher, precision)
    rules = DecodingRules(whisper)
    dropped = [clip.text for clip in clips if clip.seconds > forward.WINDOW_SECONDS]
    targets: dict[int, TeacherTargets] = {}
    with bar(None, "the teacher transcribes", total=len(clips), unit="clip") as shown:
        for indices in _of_one_window(clips, batch_size=16):
            sound = [clips[i].samples() for i in indices]
            # A clone, as tensors made in inference mode can't be trained on. The clips'
            # states are views of it: one block of memory a batch, none in pieces.
            states = encode_clips(whisper, sound, "clip").clone()  # (b, f, d)
            transcripts = greedy_decode(whisper, states)
            texts = [text_of(whisper, tokens) for tokens in transcripts]
            if from_text:
                transcripts = [_tokens_of(whisper, clips[i].text) for i in indices]
            hidden = _last_hidden(whisper, rules, states, transcripts)
            for i, own, text, tokens, last in zip(
                indices, states, texts, transcripts, hidden, strict=True
            ):
                if word_errors([clips[i].text], [text]).wer > MAX_WER:
                    dropped.append(text)
                    continue
                labels = torch.tensor([*tokens, rules.end])
                targets[i] = TeacherTargets(own, labels, last)
            shown.update(len(indices))
            release_memory()
    if not targets:
        raise DataError(
            f"None of {len(clips)} clips can be trained on: each is longer than "
            f"{forward.WINDOW_SECONDS:.0f} s, or over {MAX_WER:.0%} of the teacher's "
            "words differ from its text. Do the texts belong to the recordings?"
        )
    # In the clips' order, whatever the batches were.
    return DistilDataset([targets[i] for i in sorted(targets)], rules.prompt, dropped)


def _of_one_window(clips: Sequence[Clip], batch_size: int) -> Iterator[list[int]]:
    """Indices of clips whose windows are equally long: batches without padding."""
    windows: dict[float, list[int]] = {}
    for i, clip in enumerate(clips):
        if clip.seconds <= forward.WINDOW_SECONDS:
            windows.setdefault(window_seconds(clip.seconds), []).append(i)
    for _, same in sorted(windows.items(), reverse=True):
        for rows in batches(len(same), batch_size):
            yield same[rows]


def _tokens_of(whisper: Whisper, text: str) -> list[int]:
    """As Whisper writes it: with a space before the first word."""
    tokenizer = whisper.processor.tokenizer
    return tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"]


def _last_hidden(whisper, rules, states, transcripts) -> list[torch.Tensor]:
    """float16 (t, d) at every token of each transcript, its end included."""
    decoder, prompt = whisper.model.model.decoder, rules.prompt.tolist()
    inputs = [torch.tensor(prompt + tokens) for tokens in transcripts]
    tokens = pad_sequence(inputs, batch_first=True).to(states.device)  # (b, L)
    hidden = forward.decode(decoder, tokens, states).half().cpu()  # (b, L, d)
    first = len(prompt) - 1  # the prompt's last token predicts the first label
    return [hidden[row, first : len(own)].clone() for row, own in enumerate(inputs)]


class StudentDecoder(nn.Module):
    """A student's decoder as the training loop sees it: a batch in, (n, d) out."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: DistilBatch) -> torch.Tensor:
        states = batch.states
        if not torch.is_autocast_enabled(states.device.type):
            states = states.float()
        hidden = forward.decode(self.decoder, batch.tokens, states, batch.mask)
        return hidden[batch.predicts]


def train(
    student: Whisper,
    data: DistilDataset,
    config: DistilConfig,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> History:
    """Train a student's decoder layers in place.

    Args:
        evaluate: called after each epoch, as in ``training.fit``.

    Raises:
        TrainingError: fewer steps than one epoch takes, or the loss is not finite.
    """
    epoch_steps = -(-len(data) // config.batch_size)
    if config.steps < epoch_steps / 2:
        raise TrainingError(
            f"{config.steps} steps are less than one epoch of {len(data)} clips "
            f"({epoch_steps} steps): ask for more, or pass fewer clips."
        )
    low = use_bf16(config.precision, settings.device())
    student.model.to(settings.device())  # whole: its encoder would stay behind
    decoder = student.model.model.decoder
    # Frozen, so one copy in the loss's precision serves all steps.
    vocabulary = decoder.embed_tokens.weight.detach()  # (V, d)
    vocabulary = vocabulary.to(torch.bfloat16) if low else vocabulary

    def loss(model: nn.Module, batch: DistilBatch) -> torch.Tensor:
        hidden = model(batch)  # (n, d)
        weight = vocabulary.to(hidden.device)

        def of_chunk(part: torch.Tensor, rows: slice) -> torch.Tensor:
            teacher = batch.hidden[rows].to(weight.dtype) @ weight.T  # (rows, V)
            return distillation_loss(
                part.to(weight.dtype) @ weight.T, teacher, batch.labels[rows],
                (config.alpha_soft, config.alpha_hard), config.temperature,
            )  # fmt: skip

        return chunked_loss(hidden.float(), of_chunk)

    def after_epoch(model: nn.Module) -> dict[str, float]:
        release_memory()
        return evaluate(model) if evaluate else {}

    train_config = TrainConfig(
        epochs=max(1, round(config.steps / epoch_steps)),
        batch_size=config.batch_size,
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
        schedule="linear",
        warmup=0.1,
        precision="bf16" if low else "no",
        max_grad_norm=1.0,
        lengths=data.lengths,
        seed=config.seed,
        description="distilling",
    )
    return fit(StudentDecoder(decoder), data, loss, train_config, evaluate=after_epoch)
