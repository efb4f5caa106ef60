"""How much a notebook does in a profile: a taste on a laptop, the whole in ``full``.

A laptop whose processor has no fast bfloat16 needs twice the time for the same work:
the longest notebooks give it less, so that the course still fits into a morning.
"""

from dataclasses import dataclass

from . import precision, settings


def _here(sizes: dict):
    """The entry of this profile, or of a slow laptop where there is one for it."""
    profile, slow = settings.load().profile, "mini, no bf16"
    if profile == "mini" and slow in sizes:
        profile = profile if precision.fast_bf16(settings.device()) else slow
    return sizes[profile]


@dataclass(frozen=True)
class Transfer:
    """Sizes of the notebook on transfer learning.

    Attributes:
        large, small: epochs of the two networks that are trained from nothing.
        passes: of the learning curve's heads through all pictures, or as many steps.
    """

    large: int
    small: int
    passes: int


_TRANSFER = {
    "mini": Transfer(2, 6, 12),
    "full": Transfer(4, 10, 40),
}


def transfer() -> Transfer:
    """The sizes of this profile."""
    return _here(_TRANSFER)


@dataclass(frozen=True)
class Listening:
    """Sizes of the notebook that distils Whisper.

    Attributes:
        clips: to learn from. steps: of the student's training, 16 clips each.
        short_steps: of the two short trainings that are compared.
        judged, validated: clips to be judged by, and to watch the training by.
        repeats: of a timing. drafted, noisy: clips to draft, and to hear in noise.
    """

    clips: int
    steps: int
    short_steps: int
    judged: int
    validated: int
    repeats: int
    drafted: int
    noisy: int


_LISTENING = {
    "mini": Listening(400, 200, 40, 32, 24, 3, 4, 8),
    "mini, no bf16": Listening(112, 60, 20, 20, 12, 3, 2, 4),
    "full": Listening(800, 400, 80, 64, 48, 5, 8, 12),
}


def listening() -> Listening:
    """The sizes of this profile."""
    return _here(_LISTENING)


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
    "mini": FineTuning(352, 160, 320, 1, (("qv", 64),), 240, 16),
    "mini, no bf16": FineTuning(352, 112, 240, 1, (("qv", 64),), 200, 16),
    "full": FineTuning(
        2000, 872, 872, 3, tuple((t, r) for t in _TARGETS for r in _RANKS), 900, 240
    ),
}


def fine_tuning() -> FineTuning:
    """The sizes of this profile."""
    return _here(_FINE_TUNING)


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
    "mini": Quantization("smollm2-135m-instruct", (12, 256), (3, 128), 8, 32),
    "full on cpu": Quantization(
        "smollm2-360m-instruct", (32, 256), (16, 512), 300, 256
    ),
    "full on cuda": Quantization(
        "smollm2-1.7b-instruct", (128, 512), (32, 512), 1000, 512
    ),
}  # fmt: skip


def quantization() -> Quantization:
    """The sizes of this profile, and of this device in profile ``full``."""
    if settings.load().profile == "full":
        kind = "cuda" if settings.device().startswith("cuda") else "cpu"
        return _QUANTIZATION[f"full on {kind}"]
    return _here(_QUANTIZATION)


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


@dataclass(frozen=True)
class LowRank:
    """Sizes of the notebook on low rank.

    Attributes:
        ranks: to be tried, falling.
        judge: sentences that models are judged by.
        calibrate: sentences that say which directions matter.
        again: sentences that a factorized network learns from once more.
        pictures: to judge the flower network by.
        epochs: of the small convolutional network.
    """

    ranks: tuple[int, ...]
    judge: int
    calibrate: int
    again: int
    pictures: int
    epochs: int


_LOW_RANK = {
    "mini": LowRank((192, 128, 64, 32), 240, 96, 160, 80, 5),
    "full": LowRank((320, 256, 128, 64), 872, 1000, 2000, 600, 20),
}


def low_rank() -> LowRank:
    """The sizes of this profile."""
    return _LOW_RANK[settings.load().profile]


@dataclass(frozen=True)
class FromScratch:
    """Sizes of the notebook that quantizes from scratch.

    Attributes:
        pixels, epochs: of the small network that is trained here.
        aware_epochs: passes of quantization-aware training.
        calibrate: pictures that ranges are found on.
        judge: pictures a class that simulated networks are judged by.
        probe: pictures that one part at a time is judged by.
    """

    pixels: int
    epochs: int
    aware_epochs: int
    calibrate: int
    judge: int
    probe: int


_FROM_SCRATCH = {
    "mini": FromScratch(40, 6, 1, 64, 2, 16),
    "full": FromScratch(96, 30, 6, 512, 10, 256),
}


def from_scratch() -> FromScratch:
    """The sizes of this profile."""
    return _here(_FROM_SCRATCH)


@dataclass(frozen=True)
class Pruning:
    """Sizes of the pruning notebook.

    Attributes:
        seeds: of everything that is trained in several.
        epochs: of the small networks' trainings.
        rounds: of the search for lottery tickets.
        probe: pictures that masks on the flower network are judged by.
        thin: of so many training pictures one is surveyed. mend: and one mends.
        budget: share of the blocks' cost that is left.
        tune, retune: epochs of the flower network, and of the smaller one. The one to
            compare it with goes on for half of the latter.
        sentences: to choose and mend by, and to be judged by.
    """

    seeds: int
    epochs: int
    rounds: int
    probe: int
    thin: int
    mend: int
    budget: float
    tune: int
    retune: int
    sentences: tuple[int, int]


_PRUNING = {
    "mini": Pruning(3, 6, 3, 96, 4, 2, 0.55, 2, 4, (80, 144)),
    "full": Pruning(5, 30, 4, 600, 1, 1, 0.55, 8, 12, (1000, 872)),
}


def pruning() -> Pruning:
    """The sizes of this profile."""
    return _PRUNING[settings.load().profile]


@dataclass(frozen=True)
class Distillation:
    """Sizes of the notebook that distils classifiers and a language model.

    Attributes:
        labelled: sentences that students have labels for.
        lstm: passes through them, and sentences a step, of the BiLSTM. With unlabelled
            sentences beside them there is one pass through so many times as many: the
            same number of steps.
        layers: the same, of the student with transformer layers.
        choose: sentences to choose by. judge: to be judged by.
        width: of the BiLSTM's embeddings.
        prompts: the language model's, to learn from and to be judged by.
        tokens: of a prompt, and of its continuation.
    """

    labelled: int
    lstm: tuple[int, int]
    layers: tuple[int, int]
    choose: int
    judge: int
    width: int
    prompts: tuple[int, int]
    tokens: tuple[int, int]


_DISTILLATION = {
    "mini": Distillation(240, (4, 20), (2, 15), 216, 432, 128, (16, 12), (16, 12)),
    "full": Distillation(1000, (6, 32), (6, 32), 872, 872, 256, (256, 64), (32, 32)),
}


def distillation() -> Distillation:
    """The sizes of this profile."""
    return _DISTILLATION[settings.load().profile]


@dataclass(frozen=True)
class Detection:
    """Sizes of the notebook that quantizes a detector.

    Attributes:
        calibrate: pictures that ranges are found on, and layers are chosen by.
        judge: pictures to be judged by.
        probe: of those, how many show what mistakes cost.
        resampled: times that pictures are drawn anew, for the spread.
        repeats: of a timing.
    """

    calibrate: int
    judge: int
    probe: int
    resampled: int
    repeats: int


_DETECTION = {
    "mini": Detection(12, 28, 8, 200, 8),
    "full": Detection(64, 400, 64, 500, 20),
}


def detection() -> Detection:
    """The sizes of this profile."""
    return _here(_DETECTION)


@dataclass(frozen=True)
class Export:
    """Sizes of the notebook on other engines.

    Attributes:
        sentences, pictures: to judge by.
        calibrate: sentences and pictures that ranges are found on, a multiple of 8.
        clips: that Whisper hears.
    """

    sentences: int
    pictures: int
    calibrate: int
    clips: int


_EXPORT = {"mini": Export(288, 224, 40, 3), "full": Export(872, 600, 256, 16)}


def export() -> Export:
    """The sizes of this profile."""
    return _EXPORT[settings.load().profile]


@dataclass(frozen=True)
class Stacking:
    """Sizes of the notebook that stacks methods.

    Attributes:
        labelled, unlabelled: sentences that teach the student; epochs: passes.
        mend: sentences that pruning looks at.
        judge: sentences that judge. pictures: that judge.
        thin: of so many training pictures one calibrates.
        repeats: of a timing.
    """

    labelled: int
    unlabelled: int
    epochs: int
    mend: int
    judge: int
    pictures: int
    thin: int
    repeats: int


_STACKING = {
    "mini": Stacking(480, 480, 1, 96, 320, 240, 12, 12),
    "full": Stacking(6000, 12000, 3, 1000, 872, 1000, 8, 50),
}


def stacking() -> Stacking:
    """The sizes of this profile."""
    return _here(_STACKING)
