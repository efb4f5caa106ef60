"""Accuracy of every method of fine-tuning on SST-2, at equal data, steps and search.

    MICROBUDGET_DATA=FOLDER python tests/benchmarks/finetuning_accuracy.py

For each method the learning rate of the best accuracy on a validation split is searched
for (one seed, the whole budget); then it is trained from several seeds and evaluated
on dev.
"""

import argparse
import json
import time

import numpy as np
import peft
import torch
from torch.nn import functional as F

import microbudget as mb

LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
METHODS = {
    "lora": LORA,
    "bottleneck": mb.finetuning.BottleneckConfig(width=32),
    "bitfit": mb.finetuning.BitFitConfig(),
    "full": mb.finetuning.FullConfig(),
    "ia3": peft.IA3Config(
        target_modules=r".*(key|value|layer\.\d+\.output\.dense)",
        feedforward_modules=r".*layer\.\d+\.output\.dense",
    ),
    "top_layers": mb.finetuning.TopLayersConfig(layers=2),
    "head_only": mb.finetuning.HeadOnlyConfig(),
    "qlora": LORA,
    "full+dropout": mb.finetuning.FullConfig(),
}


def train(encoder, task, sentences, args, method, lr, seed):
    """One training from one seed: the model, and the seconds it took."""
    model = encoder.classifier(
        len(task.classes), seed=seed, four_bit=method == "qlora",
        dropout=0.1 if method == "full+dropout" else 0.0,
    )  # fmt: skip
    mb.finetuning.apply_(model, METHODS[method])
    config = mb.finetuning.FinetuneConfig(lr, args.epochs, args.batch_size, seed=seed)
    started = time.perf_counter()
    mb.finetuning.train(model, sentences, config)
    return model, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(mb.core.settings.load().threads)
    encoder, task = mb.models.bert.load(), mb.data.text.sentiment()
    print(f"{encoder.name} on {task.name}: {task.describe()}; {vars(args)}")

    def tokens(labelled):
        return mb.data.text.Sentences(encoder.tokenizer, labelled)

    sentences, val = tokens(task.train.first(args.train)), tokens(task.val)
    test = tokens(task.test)
    for method in args.methods:
        losses = {}

        def error_at(lr, method=method, losses=losses):
            model, _ = train(encoder, task, sentences, args, method, lr, args.seeds[0])
            logits = mb.finetuning.predict(model, val)
            losses[f"{lr:.2g}"] = round(float(F.cross_entropy(logits, val.labels)), 4)
            return 1 - mb.evaluation.accuracy(val.labels, logits.argmax(1))

        lr, tried = mb.finetuning.search_lr(error_at, start=10**-3.5)
        scores, seconds = [], []
        for seed in args.seeds:
            model, taken = train(encoder, task, sentences, args, method, lr, seed)
            scores.append(mb.finetuning.score(model, test))
            seconds.append(taken)
        row = {
            "method": method,
            "lr": lr,
            "tried": {f"{rate:.2g}": round(1 - e, 4) for rate, e in tried.items()},
            "losses": losses,
            "trainable": str(mb.evaluation.count_parameters(model)),
            "scores": [round(score, 4) for score in scores],
            "mean": round(float(np.mean(scores)), 4),
            "seconds": [round(s, 1) for s in seconds],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
