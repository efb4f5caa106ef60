"""The two networks that chapters compress: a sentence classifier, a flower network.

Each is trained once on this machine, from the profile's pretrained weights and data,
and kept under ``runs``: chapters that need a trained network load it in a moment.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import assets
from ..core import settings
from ..core.errors import MicrobudgetError
from ..data import flowers as flower_data
from ..data import text
from ..models import bert as encoders
from ..models import mobilenet
from ..models.vision import Preprocess
from . import features, image_classifier, text_classifier

_VERSION = 1  # of the recipes below: a new one makes old files worthless


@dataclass(frozen=True)
class Recipe:
    """How the sentence classifier is fine-tuned.

    Attributes:
        sentences: to train on. epochs: passes through them. lr: learning rate.
    """

    sentences: int
    epochs: int
    lr: float


_RECIPES = {"mini": Recipe(1200, 1, 1e-4), "full": Recipe(6000, 3, 2e-5)}


def recipe() -> Recipe:
    """The recipe of this profile."""
    return _RECIPES[settings.load().profile]


@dataclass(frozen=True)
class Sentiment:
    """A fine-tuned sentence encoder with what it was made from.

    Attributes:
        model: (ids, mask) -> logits (batch, classes), in eval mode.
        learnt: how many of ``task.train``'s first sentences it has seen.
    """

    model: encoders.Classifier
    task: text.Task
    encoder: encoders.Encoder
    learnt: int


@dataclass(frozen=True)
class FlowerNet:
    """A pretrained MobileNetV2 with a head for the flowers.

    Attributes:
        model: float pictures (batch, 3, size, size) -> logits (batch, classes), in eval
            mode, batch-norms not folded; every weight but the head's is the backbone's.
        preprocess: uint8 pictures -> what the model takes.
    """

    model: nn.Module
    flowers: flower_data.Flowers
    preprocess: Preprocess

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.preprocess.size


def sentiment() -> Sentiment:
    """The profile's encoder, all of it fine-tuned on the sentiment task.

    Raises:
        AssetError, DataError: as ``text.sentiment`` and ``encoder.load``.
    """
    plan, seed = recipe(), settings.load().seed
    encoder, task = encoders.load(), text.sentiment()
    model = encoder.classifier(len(task.classes), seed=seed)
    learn = task.train.first(plan.sentences)

    def train() -> None:
        sentences = text.Sentences(encoder.tokenizer, learn)
        text_classifier.train(
            model, sentences, lr=plan.lr, epochs=plan.epochs, seed=seed,
            description="the teacher's fine-tuning",
        )  # fmt: skip

    made_from = [encoder.base_id, task.name, plan.sentences, plan.lr, plan.epochs, seed]
    _once("sentiment", model, train, [*made_from, learn.texts, learn.labels])
    return Sentiment(model, task, encoder, len(learn))


def flowers() -> FlowerNet:
    """The profile's MobileNetV2, its backbone as pretrained, with a trained head.

    Raises:
        AssetError, DataError: as ``flowers.load`` and ``mobilenet.mobilenet_v2``.
    """
    seed = settings.load().seed
    data = flower_data.load()
    preprocess = mobilenet.preprocess(data.size)
    torch.manual_seed(seed)
    model = mobilenet.mobilenet_v2(len(data.classes))

    def train() -> None:
        describe = image_classifier.PooledDepths(model.features, at=(18,), unit=False)
        pictures = data.train.lazy_images(data.size)
        views = torch.stack([
            features.extract(describe, pictures, preprocess, flip=flip)
            for flip in (False, True)
        ])  # fmt: skip
        standardise = image_classifier.Standardise(views)
        head = image_classifier.linear_head(describe.width, len(data.classes))
        image_classifier.train_head(
            head, standardise(views), data.train.labels, epochs=20, seed=seed
        )
        with torch.no_grad():  # the standardisation goes into the head: nothing is left
            weight = head.weight.cpu() / standardise.scale
            model.classifier[1].weight.copy_(weight)
            model.classifier[1].bias.copy_(head.bias.cpu() - weight @ standardise.mean)

    weights = assets.config(mobilenet.NAME)
    pictures = [(p.parent.name, p.name, p.stat().st_size) for p in data.train.paths]
    labels = data.train.labels.tolist()
    made_from = [weights, data.name, data.classes, pictures, labels, data.size, seed]
    _once("flowers", model, train, made_from)
    model.to(settings.device()).eval()
    return FlowerNet(model, data, preprocess)


def _once(name: str, model: nn.Module, train: Callable[[], None], made_from) -> Path:
    """Fill ``model`` from its file, or train it and write the file."""
    text_of = json.dumps([_VERSION, settings.load().profile, made_from], default=str)
    key = hashlib.sha256(text_of.encode()).hexdigest()
    path = (
        settings.load().home / "runs" / "finetuned" / f"{name}-{key[:12]}.safetensors"
    )
    try:
        if path.exists():
            image_classifier.load(model, path)
            return path
    except MicrobudgetError:  # damaged: what was trained here can be trained again
        path.unlink()
    train()
    return image_classifier.save(model.eval(), path, made_from=key)
