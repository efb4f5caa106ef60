"""Accuracy and cost on Oxford 102 Flowers, over three seeds.

    MICROBUDGET_DATA=FOLDER python tests/benchmarks/flowers_accuracy.py [NAME …]

Trains on the official train images, evaluates on the validation images. Every row
is the whole work from the picture files on: decoding, features of both sets, training.
Hyper-parameters were chosen by cross-validation within the train split.
"""

import sys
import time
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

import microbudget as mb
from microbudget.training import image_classifier
from microbudget.training.image_classifier import HeadConfig

SEEDS = (0, 1, 2)
PLAIN = HeadConfig(epochs=30, weight_decay=0.01, label_smoothing=0.0)


def dense_head(width: int, classes: int):
    """One hidden layer with dropout."""
    inner = [nn.Linear(width, 256), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*inner, nn.Linear(256, classes))


def backbone(size: int):
    """(stages, three of them to read, preprocessing) of MobileNetV2."""
    model = mb.models.mobilenet.mobilenet_v2(102)
    return model.features, (13, 17, 18), mb.models.mobilenet.preprocess(size)


def load(size: int):
    data = mb.data.flowers.load()
    images = data.train.images(size), data.val.images(size)
    return *images, data.train.labels, data.val.labels, len(data.classes)


def two_views(model, images, scale):
    views = [
        mb.training.features.extract(model, images, scale, flip=f)
        for f in (False, True)
    ]
    return torch.stack(views)


def frozen(make_head, seeds=SEEDS, size=224):
    """One stage, no mirror: the notebook's first figure."""
    x, x_val, y, y_val, classes = load(size)
    stages, _, scale = backbone(size)
    describe = image_classifier.MultiStageFeatures(stages, at=(18,), unit=False)
    train = mb.training.features.extract(describe, x, scale)
    val = mb.training.features.extract(describe, x_val, scale)
    scores = []
    for seed in seeds:
        torch.manual_seed(seed)
        head = make_head(train.shape[1], classes)
        image_classifier.train_head(head, train, y, replace(PLAIN, seed=seed))
        scores.append(image_classifier.score(head, val, y_val))
    return scores


def three_stages(seeds=SEEDS, size=224):
    """Three stages, mirrored in training and in prediction: the recipe."""
    x, x_val, y, y_val, classes = load(size)
    stages, at, scale = backbone(size)
    describe = image_classifier.MultiStageFeatures(stages, at=at)
    train, val = two_views(describe, x, scale), two_views(describe, x_val, scale)
    standardise = image_classifier.Standardise(train)
    train, val = standardise(train), standardise(val)
    scores = []
    for seed in seeds:
        torch.manual_seed(seed)
        head = nn.Linear(describe.width, classes)
        image_classifier.train_head(head, train, y, HeadConfig(seed=seed))
        scores.append(image_classifier.score(head, val, y_val))
    return scores


def fine_tuned(seeds=SEEDS, size=224, at=16):
    """Last blocks and head, from the trained head on, mirrored in training."""
    x, x_val, y, y_val, classes = load(size)
    stages, _, scale = backbone(size)
    maps = two_views(stages[:at], x, scale)
    val = mb.training.features.extract(stages[:at], x_val, scale)
    scores = []
    for seed in seeds:
        _, tuned = image_classifier.split(stages, at)
        last = image_classifier.MultiStageFeatures(
            tuned, at=(len(tuned) - 1,), unit=False
        )
        with torch.inference_mode():
            start = torch.cat([last(part) for part in maps.flatten(0, 1).split(256)])
        start = start.reshape(2, len(x), -1).clone()
        torch.manual_seed(seed)
        head = nn.Linear(last.width, classes)
        config = HeadConfig(weight_decay=0.01, seed=seed)
        image_classifier.train_head(head, start, y, config)
        network = nn.Sequential(last, head)
        config = image_classifier.StagesConfig(precision=_precision())
        image_classifier.fine_tune(network, maps, y, config, head)
        scores.append(image_classifier.score(network, val, y_val))
    return scores


def from_scratch(seeds=SEEDS, size=128, epochs=6):
    """The same network from random weights, at about the budget of the others."""
    x, x_val, y, y_val, classes = load(size)
    scale = mb.models.mobilenet.preprocess(size)

    def loss(model, batch):
        x, y = batch
        mirror = (torch.rand(len(x), device=x.device) < 0.5).view(-1, 1, 1, 1)
        return F.cross_entropy(
            model(torch.where(mirror, x.flip(-1), x)), y, label_smoothing=0.1
        )

    scores = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = mb.models.mobilenet.mobilenet_v2(classes, pretrained=False)
        mb.training.fit(
            model.to(memory_format=torch.channels_last),
            (scale(x), y),
            loss,
            mb.training.TrainConfig(
                epochs=epochs,
                batch_size=32,
                lr=2e-3,
                weight_decay=0.05,
                schedule="cosine",
                warmup=0.1,
                precision=_precision(),
                seed=seed,
            ),
        )
        scores.append(image_classifier.score(model, scale(x_val), y_val))
    return scores


def _precision() -> str:
    return "bf16" if mb.core.precision.fast_bf16(mb.core.settings.device()) else "no"


ROWS = {
    "frozen + linear": lambda seeds: frozen(nn.Linear, seeds),
    "frozen + Dense256 + dropout": lambda seeds: frozen(dense_head, seeds),
    "three stages, mirrored": three_stages,
    "last blocks fine-tuned": fine_tuned,
    "from scratch, 128 px": from_scratch,
}


def main(wanted: list[str]) -> None:
    here = mb.core.settings.load()
    torch.set_num_threads(here.threads)
    print(f"{mb.data.flowers.load().describe()}; {here.threads} threads")
    print(f"{'':36} {'seeds 0, 1, 2':24} mean   wall s of one seed, from the files on")
    for name, work in ROWS.items():
        if wanted and not any(part in name for part in wanted):
            continue
        started = time.perf_counter()
        first = work((0,))
        one = time.perf_counter() - started
        scores = [*first, *work(SEEDS[1:])]
        listed = " ".join(f"{score:.4f}" for score in scores)
        print(f"{name:36} {listed:24} {sum(scores) / 3:.4f} {one:6.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
