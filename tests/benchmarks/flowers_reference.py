"""The recorded run of notebook 01: official Oxford 102 Flowers, three seeds.

    MICROBUDGET_DATA=FOLDER python tests/benchmarks/flowers_reference.py

Trained on the official train images, evaluated on the official validation images, which
nothing is chosen on: all settings are the notebook's. What is in ``data/reference``
already isn't computed twice.
"""

import os
import time
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

import microbudget as mb
from microbudget.course import reference
from microbudget.training import image_classifier
from microbudget.training.image_classifier import HeadConfig

SEEDS, SIZE, SCRATCH_PIXELS, SCRATCH_EPOCHS = range(3), 224, 96, 60
PLAIN = HeadConfig(epochs=40, weight_decay=0.01, label_smoothing=0.0)
REGULARISED = HeadConfig(epochs=40)
SCALINGS = {
    "scaled 0 to 1": ((0, 0, 0), (1, 1, 1)),
    "scaled by mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
NAME = "flowers-102"
COMMAND = "python tests/benchmarks/flowers_reference.py"


class Bench:
    """Images, labels, and features that are computed when they are first needed."""

    def __init__(self):
        self.data = mb.data.flowers.load()
        self.x, self.x_val = (s.images(SIZE) for s in (self.data.train, self.data.val))
        self.y, self.y_val = self.data.train.labels, self.data.val.labels
        self.classes = len(self.data.classes)
        self.stages = mb.models.mobilenet.mobilenet_v2(self.classes).features
        self.scale = mb.models.mobilenet.preprocess(SIZE)

    def features(self, at, scale=None, flip=False, unit=True):
        """(train, validation) features of some stages."""
        model = image_classifier.MultiStageFeatures(self.stages, at=at, unit=unit)
        scale = scale or self.scale
        return [
            mb.training.features.extract(model, images, scale, flip=flip)
            for images in (self.x, self.x_val)
        ]

    def heads(self, train, val, config, labels=None):
        """Right or wrong (seeds, images) of linear heads."""
        hits = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            head = nn.Linear(train.shape[-1], self.classes)
            labels = self.y if labels is None else labels
            image_classifier.train_head(head, train, labels, replace(config, seed=seed))
            guesses = image_classifier.predict(head, val).argmax(1)
            hits.append(guesses == self.y_val)
        return hits


def run_heads(bench, found, keep):
    """Scalings, stages, regularisation, mirrors and numbers of images."""
    train, val = bench.features((18,), unit=False)
    keep("one stage", bench.heads(train, val, PLAIN))
    scale_one = image_classifier.Standardise(train)
    hits = bench.heads(scale_one(train), scale_one(val), REGULARISED)
    keep("one stage, regularised", hits)
    for name, values in SCALINGS.items():
        other = mb.models.vision.Preprocess(*values, SIZE)
        keep(name, bench.heads(*bench.features((18,), other, unit=False), PLAIN))
    views = [bench.features((13, 17, 18), flip=flip) for flip in (False, True)]
    train, val = (torch.stack(both) for both in zip(*views, strict=True))
    scale_all = image_classifier.Standardise(train)
    train, val = scale_all(train), scale_all(val)
    half = replace(REGULARISED, epochs=20)  # twice the examples
    keep("three stages", bench.heads(train[0], val[0], PLAIN))
    keep("three stages, regularised", bench.heads(train[0], val[0], REGULARISED))
    keep("mirrored in training", bench.heads(train, val[0], half))
    keep("mirrored at test time", bench.heads(train[0], val, REGULARISED))
    keep("mirrored in both", bench.heads(train, val, half))
    for n in (1, 2, 5):
        rows = bench.data.train.per_class(n)
        config = replace(REGULARISED, epochs=400 // n)  # as many steps
        hits = bench.heads(train[0, rows], val[0], config, bench.y[rows])
        keep(f"{n} images a class", hits)


def run_fine_tuning(bench, found, keep):
    """The last blocks and a head, from the trained head on."""
    at, hits = 16, []
    maps, val = (
        torch.stack([
            mb.training.features.extract(bench.stages[:at], x, bench.scale, flip=flip)
            for flip in (False, True)
        ])
        for x in (bench.x, bench.x_val)
    )  # fmt: skip
    for seed in SEEDS:
        _, tuned = image_classifier.split(bench.stages, at)
        last = image_classifier.MultiStageFeatures(tuned, (len(tuned) - 1,), unit=False)
        with torch.inference_mode():
            start = torch.cat([last(part) for part in maps.flatten(0, 1).split(256)])
        start = start.reshape(2, len(bench.x), -1).clone()
        torch.manual_seed(seed)
        head = nn.Linear(last.width, bench.classes)
        config = HeadConfig(epochs=20, weight_decay=0.01, seed=seed)
        image_classifier.train_head(head, start, bench.y, config)
        network = nn.Sequential(last, head)
        config = image_classifier.StagesConfig(precision=_precision(), seed=seed)
        image_classifier.fine_tune(network, maps, bench.y, config, head)
        logits = image_classifier.predict(network, val[0])
        hits.append(logits.argmax(1) == bench.y_val)
    keep("last blocks fine-tuned", hits)


def run_from_scratch(bench, found, keep):
    """A small network from random weights: accuracy over processor seconds."""
    scale = mb.models.mobilenet.preprocess(SCRATCH_PIXELS)
    curve = mb.training.BudgetCurve(
        lambda model: image_classifier.score(model, scale(bench.x_val), bench.y_val)
    )

    def loss(model, batch):
        x, y = batch
        mirror = (torch.rand(len(x)) < 0.5).view(-1, 1, 1, 1)
        x = torch.where(mirror, x.flip(-1), x)
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    torch.manual_seed(0)
    model = mb.models.vision.small_cnn(bench.classes)
    config = mb.training.TrainConfig(
        SCRATCH_EPOCHS, batch_size=32, lr=2e-3, weight_decay=0.05, schedule="cosine",
        warmup=0.1, precision=_precision(),
    )  # fmt: skip
    mb.training.fit(model, (scale(bench.x), bench.y), loss, config, evaluate=curve)
    found["from scratch"] = {"seconds": curve.seconds, "accuracy": curve.scores}
    keep("from scratch", [])


def _precision() -> str:
    return "bf16" if mb.core.precision.fast_bf16(mb.core.settings.device()) else "no"


PARTS = {
    "mirrored in both": run_heads,
    "last blocks fine-tuned": run_fine_tuning,
    "from scratch": run_from_scratch,
}


def main() -> None:
    torch.set_num_threads(mb.core.settings.load().threads)
    path = reference.folder() / f"{NAME}.json"
    found = reference.load(NAME)["result"] if path.exists() else {"methods": {}}
    bench = Bench()
    found["test"] = len(bench.y_val)
    assert not bench.data.generated, f"set MICROBUDGET_DATA: {os.environ.get('PWD')}"
    started = time.perf_counter()

    def keep(name: str, hits: list) -> None:
        if hits:
            scores = [round(float(h.float().mean()), 4) for h in hits]
            packed = [reference.pack(h) for h in hits]
            found["methods"][name] = {"hits": packed, "accuracy": scores}
        print(f"{time.perf_counter() - started:6.0f} s  {name}", flush=True)
        reference.record(
            NAME,
            f"Official Oxford 102 Flowers: {len(bench.y):,} training images, "
            f"{len(bench.y_val):,} validation images, {SIZE} pixels, {len(SEEDS)} "
            f"seeds; from scratch {SCRATCH_PIXELS} pixels, {SCRATCH_EPOCHS} epochs, "
            f"one seed.",
            COMMAND, "Oxford 102 Flowers, train and validation", found,
        )  # fmt: skip

    for name, part in PARTS.items():
        if name not in {*found["methods"], *found}:
            part(bench, found, keep)


if __name__ == "__main__":
    main()
