"""How much a notebook does in a profile: a taste on a laptop, the whole in ``full``."""

from dataclasses import dataclass

from . import settings


@dataclass(frozen=True)
class FineTuning:
    """Sizes of the fine-tuning notebook.

    Attributes:
        learn, choose, judge: sentences to learn from, to choose by, to be judged by.
        epochs: passes through the sentences.
        grid: (targets, rank) of LoRA in the sweep.
        language_steps: of the language adapter.
        dialogues: the language model learns from.
    """

    learn: int
    choose: int
    judge: int
    epochs: int
    grid: tuple[tuple[str, int], ...]
    language_steps: int
    dialogues: int


_RANKS = (1, 2, 4, 8, 16, 32, 64)
_TARGETS = ("q", "qv", "qkvo", "qkvof")
_FINE_TUNING = {
    "mini": FineTuning(
        352, 160, 320, 1, (("qv", 1), ("qv", 64), ("qkvof", 8)), 240, 56
    ),
    "full": FineTuning(
        2000, 872, 872, 3, tuple((t, r) for t in _TARGETS for r in _RANKS), 900, 240
    ),
}


def fine_tuning() -> FineTuning:
    """The sizes of this profile."""
    return _FINE_TUNING[settings.load().profile]


@dataclass(frozen=True)
class Quantization:
    """Sizes of the notebook that quantizes a language model.

    Attributes:
        model: the language model's name in the catalog.
        calibrate: sequences and tokens of calibration text.
        windows: windows and tokens that models are judged by.
        passages: whose last word is to be guessed.
        probe: tokens by which one layer at a time is judged.
    """

    model: str
    calibrate: tuple[int, int]
    windows: tuple[int, int]
    passages: int
    probe: int


_QUANTIZATION = {
    "mini": Quantization("smollm2-135m-instruct", (12, 256), (4, 128), 16, 64),
    "full on cpu": Quantization(
        "smollm2-360m-instruct", (32, 256), (16, 512), 300, 256
    ),
    "full on cuda": Quantization(
        "smollm2-1.7b-instruct", (128, 512), (32, 512), 1000, 512
    ),
}  # fmt: skip


def quantization() -> Quantization:
    """The sizes of this profile, and of this device in profile ``full``."""
    profile = settings.load().profile
    if profile == "full":
        profile += " on cuda" if settings.device().startswith("cuda") else " on cpu"
    return _QUANTIZATION[profile]


@dataclass(frozen=True)
class Reference:
    """How the sentence classifier is fine-tuned that several notebooks start from.

    Attributes:
        sentences: to learn from.
        epochs: passes through them.
        lr: learning rate.
    """

    sentences: int
    epochs: int
    lr: float


_REFERENCE = {"mini": Reference(1200, 1, 1e-4), "full": Reference(6000, 3, 2e-5)}


def reference() -> Reference:
    """The recipe of this profile."""
    return _REFERENCE[settings.load().profile]
