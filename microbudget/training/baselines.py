"""The two networks that chapters compress: a sentence classifier, a flower network.

Each is trained once on this machine, from the profile's pretrained weights and data,
and kept under ``runs``: chapters that need a trained network load it in a moment.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from . import features, image_classifier, text_classifier, weights

_VERSION = 1  # of the recipes below: a new one makes old files worthless


_SENTENCES = {"mini": 1200, "full": 6000}  # to train on
_RECIPES = {
    "mini": text_classifier.FinetuneConfig(lr=1e-4, epochs=1),
    "full": text_classifier.FinetuneConfig(lr=2e-5, epochs=3),
}


def recipe() -> text_classifier.FinetuneConfig:
    """How this profile's sentence classifier is fine-tuned."""
    here = settings.load()
    return replace(_RECIPES[here.profile], seed=here.seed)


@dataclass(frozen=True)
class Sentiment:
    """A fine-tuned sentence encoder with what it was made from.

    Attributes:
        model: (ids, mask) -> logits (batch, classes), in eval mode.
        train_size: how many of ``task.train``'s first sentences it was trained on.
    """

    model: encoders.Classifier
    task: text.Task
    encoder: encoders.Encoder
    train_size: int


@dataclass(frozen=True)
class FlowerNet:
    """A pretrained MobileNetV2 with a head for the flowers.

    Attributes:
        model: float images (batch, 3, size, size) -> logits (batch, classes), in eval
            mode, batch-norms not folded; every weight but the head's is the backbone's.
        preprocess: uint8 images -> what the model takes.
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
    config, count = recipe(), _SENTENCES[settings.load().profile]
    encoder, task = encoders.load(), text.sentiment()
    model = encoder.classifier(len(task.classes), seed=config.seed)
    train_set = task.train.first(count)

    def train() -> None:
        sentences = text.Sentences(encoder.tokenizer, train_set)
        text_classifier.train(model, sentences, config)

    made_from = [encoder.base_id, task.name, count, config.epochs, config.lr,
                 config.seed, train_set.texts, train_set.labels]  # fmt: skip
    _load_or_train("sentiment", model, train, made_from)
    return Sentiment(model, task, encoder, len(train_set))


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
        pooled = image_classifier.MultiStageFeatures(
            model.features, at=(18,), unit=False
        )
        images = data.train.images(data.size)
        views = torch.stack([
            features.extract(pooled, images, preprocess, flip=flip)
            for flip in (False, True)
        ])  # (views, images, width)  # fmt: skip
        standardise = image_classifier.Standardise(views)
        head = nn.Linear(pooled.width, len(data.classes))
        config = image_classifier.HeadConfig(seed=seed)
        image_classifier.train_head(head, standardise(views), data.train.labels, config)
        with torch.no_grad():  # the standardisation goes into the head: nothing is left
            weight = head.weight.cpu() / standardise.scale
            model.classifier[1].weight.copy_(weight)
            model.classifier[1].bias.copy_(head.bias.cpu() - weight @ standardise.mean)

    pretrained = assets.config(mobilenet.NAME)
    images = [(p.parent.name, p.name, p.stat().st_size) for p in data.train.paths]
    labels = data.train.labels.tolist()
    made_from = [pretrained, data.name, data.classes, images, labels, data.size, seed]
    _load_or_train("flowers", model, train, made_from)
    model.to(settings.device()).eval()
    return FlowerNet(model, data, preprocess)


def path_of(name: str, made_from: list) -> Path:
    """Where a network is kept on this machine.

    Args:
        made_from: all that decides its weights, as JSON takes it: data, recipe, seed.
    """
    recipe = json.dumps([_VERSION, settings.load().profile, made_from], default=str)
    key = hashlib.sha256(recipe.encode()).hexdigest()
    folder = settings.load().home / "runs" / "finetuned"
    return folder / f"{name}-{key[:12]}.safetensors"


def _load_or_train(name: str, model: nn.Module, train: Callable, made_from) -> None:
    """Fill ``model`` from its file, or train it and write the file."""
    path = path_of(name, made_from)
    try:
        weights.load_(model, path)
    except MicrobudgetError:  # not there, or damaged: it can be trained again
        train()
        weights.save(model.eval(), path)
