"""The recorded runs of notebook 03: learning rates, all methods, ranks and targets.

    MICROBUDGET_DATA=FOLDER python tests/benchmarks/finetuning_reference.py rates
    MICROBUDGET_DATA=FOLDER python tests/benchmarks/finetuning_reference.py methods
    MICROBUDGET_DATA=FOLDER python tests/benchmarks/finetuning_reference.py ranks
    MICROBUDGET_DATA=FOLDER python tests/benchmarks/finetuning_reference.py dialect

``rates`` comes first: the others use the rates that it finds. Each can be stopped
and started again; what is in ``data/reference`` already isn't computed twice.
"""

import argparse
import os
import time

import torch
from torch.nn import functional as F

import microbudget as mb  # before peft: it prepares that import
from microbudget.course import reference

TRAIN, EPOCHS, SEEDS = 2000, 3, range(5)
GRID_SEEDS = range(2)
DIALECT_SEEDS, DIALECT_EPOCHS = range(3), 12
STEP = 10**0.5  # between the learning rates of a search
# where a method's search begins; it goes on until the best rate has a worse one on
# each side
START = {
    "full": 1e-4, "top layers": 3e-4, "head only": 1e-2, "BitFit": 3e-3, "(IA)³": 1e-2,
    "bottleneck": 1e-3, "LoRA": 2e-3, "QLoRA": 2e-3,
}  # fmt: skip
RANKS, TARGETS = (1, 2, 4, 8, 64), {
    "q": ["query"],
    "q, v": ["query", "value"],
    "all": ["query", "key", "value", "attention.output.dense", "intermediate.dense",
            "layer.[0-5].output.dense"],
}  # fmt: skip


def config_of(method: str):
    import peft

    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    return {
        "full": mb.finetuning.FullConfig(),
        "top layers": mb.finetuning.TopLayersConfig(layers=2),
        "head only": mb.finetuning.HeadOnlyConfig(),
        "BitFit": mb.finetuning.BitFitConfig(),
        "(IA)³": peft.IA3Config(
            target_modules=r".*(key|value|layer\.\d+\.output\.dense)",
            feedforward_modules=r".*layer\.\d+\.output\.dense",
        ),
        "bottleneck": mb.finetuning.BottleneckConfig(width=32),
        "LoRA": lora,
        "QLoRA": lora,
    }[method]


def lora_on(targets: str, rank: int):
    import peft

    names = TARGETS[targets]
    pattern = (
        r".*(" + "|".join(names).replace(".", r"\.").replace(r"[0-5]", r"\d") + ")"
    )
    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=pattern)


class Bench:
    """An encoder with a task's sentences, and one training after the other."""

    def __init__(self, task):
        self.encoder, self.task = mb.models.bert.load(), task
        self.train, self.val, self.test = (
            mb.data.text.Sentences(self.encoder.tokenizer, part)
            for part in (task.train.first(TRAIN), task.val, task.test)
        )

    def run(self, config, lr, seed: int, four_bit: bool = False, epochs: int = EPOCHS):
        """The trained model, and the seconds of its training."""
        model = self.encoder.classifier(
            len(self.task.classes), seed=seed, four_bit=four_bit
        )
        mb.finetuning.apply_(model, config)
        started = time.perf_counter()
        options = mb.finetuning.FinetuneConfig(lr=lr, epochs=epochs, seed=seed)
        mb.finetuning.train(model, self.train, options)
        return model, time.perf_counter() - started

    def hits(self, model) -> torch.Tensor:
        return mb.finetuning.predict(model, self.test).argmax(1) == self.test.labels


def snippets():
    """The rated film snippets, also where real data sets are there."""
    folder = os.environ.pop("MICROBUDGET_DATA", None)
    try:
        return mb.data.text.sentiment()
    finally:
        if folder:
            os.environ["MICROBUDGET_DATA"] = folder


def result_so_far(name: str) -> dict:
    path = reference.folder() / f"{name}.json"
    return reference.load(name)["result"] if path.exists() else {}


def rates(command: str) -> None:
    bench, found = Bench(snippets()), result_so_far("finetuning-rates")
    for method, start in START.items():
        tried = found.setdefault(method, {"tried": {}})["tried"]

        def accuracy_at(power: int, method=method, start=start, tried=tried) -> float:
            lr = float(f"{start * STEP**power:.2g}")
            if str(lr) not in tried:
                model, _ = bench.run(config_of(method), lr, 0, method == "QLoRA")
                logits = mb.finetuning.predict(model, bench.val)
                tried[str(lr)] = {
                    "accuracy": float(
                        (logits.argmax(1) == bench.val.labels).float().mean()
                    ),
                    "loss": float(F.cross_entropy(logits, bench.val.labels)),
                }
                print(method, lr, tried[str(lr)], flush=True)
                save()
            return tried[str(lr)]["accuracy"]

        def save() -> None:
            reference.record(
                "finetuning-rates",
                f"For each method of fine-tuning, learning rates a factor of √10 apart "
                f"until the best one has a worse neighbour on each side: {TRAIN:,} "
                f"training sentences, {EPOCHS} epochs, one seed, accuracy on "
                f"{len(bench.val)} validation sentences.",
                command, bench.task.name, found,
            )  # fmt: skip

        low, high, best = -1, 1, 0
        accuracies = {p: accuracy_at(p) for p in (-1, 0, 1)}
        while True:
            best = max(accuracies, key=accuracies.get)
            low, high = min(accuracies), max(accuracies)
            if low < best < high or len(accuracies) == 6:
                break
            new = best - 1 if best == low else best + 1
            accuracies[new] = accuracy_at(new)
        found[method]["best"] = float(f"{start * STEP**best:.2g}")
        save()


def methods(command: str) -> None:
    best = {
        name: row["best"] for name, row in result_so_far("finetuning-rates").items()
    }
    found = result_so_far("finetuning-methods")
    tasks = [snippets(), mb.data.text.sentiment()]
    for task in tasks:
        bench = Bench(task)
        own = found.setdefault(task.name, {"test": len(bench.test), "methods": {}})
        for method in START:
            row = own["methods"].setdefault(
                method, {"lr": best[method], "hits": [], "accuracy": [], "seconds": []}
            )
            for seed in list(SEEDS)[len(row["hits"]) :]:
                model, seconds = bench.run(
                    config_of(method), best[method], seed, method == "QLoRA"
                )
                hits = bench.hits(model)
                counted = mb.evaluation.count_parameters(model)
                row["trainable"], row["parameters"] = counted.trainable, counted.total
                row["hits"].append(reference.pack(hits))
                row["accuracy"].append(round(float(hits.float().mean()), 4))
                row["seconds"].append(round(seconds, 1))
                print(task.name, method, seed, row["accuracy"], flush=True)
                reference.record(
                    "finetuning-methods",
                    f"Eight methods of fine-tuning, each with its own learning rate "
                    f"(searched on the film snippets), {TRAIN:,} training "
                    f"sentences, {EPOCHS} epochs, {len(SEEDS)} seeds, tested on "
                    f"{len(bench.test)} sentences.",
                    command, " and ".join(t.name for t in tasks), found,
                )  # fmt: skip


def ranks(command: str) -> None:
    lr = result_so_far("finetuning-rates")["LoRA"]["best"]
    bench, found = Bench(snippets()), result_so_far("finetuning-ranks")
    found |= {"lr": lr, "test": len(bench.test)}
    for targets in TARGETS:
        for rank in RANKS:
            row = found.setdefault("grid", {}).setdefault(targets, {}).setdefault(
                str(rank), {"hits": [], "accuracy": []}
            )  # fmt: skip
            for seed in list(GRID_SEEDS)[len(row["hits"]) :]:
                model, _ = bench.run(lora_on(targets, rank), lr, seed)
                hits = bench.hits(model)
                row["trainable"] = mb.evaluation.count_parameters(model).trainable
                row["hits"].append(reference.pack(hits))
                row["accuracy"].append(round(float(hits.float().mean()), 4))
                print(targets, rank, seed, row["accuracy"], flush=True)
                reference.record(
                    "finetuning-ranks",
                    f"LoRA with ranks {', '.join(map(str, RANKS))} on queries, on "
                    f"queries and values, and on all linear layers; α = 2r, one "
                    f"learning rate ({lr}), {TRAIN:,} training sentences, {EPOCHS} "
                    f"epochs, {len(GRID_SEEDS)} seeds.",
                    command, bench.task.name, found,
                )  # fmt: skip


def dialect(command: str) -> None:
    """A language adapter and a task adapter, stacked, and what each does alone."""
    lr = result_so_far("finetuning-rates")["bottleneck"]["best"]
    bench, found = Bench(snippets()), result_so_far("finetuning-dialect")
    tokenizer, task = bench.encoder.tokenizer, bench.task

    def in_dialect(labelled):
        short = tuple(map(mb.data.text.without_vowels, labelled.texts))
        return mb.data.text.Sentences(
            tokenizer, mb.data.text.Labelled(short, labelled.labels)
        )

    plain, hard = bench.test, in_dialect(task.test)
    steps = DIALECT_EPOCHS * (TRAIN // 16)  # on the dialect, with labels or without
    arms = found.setdefault("arms", {})
    found |= {"test": len(plain), "steps": steps}

    def keep(arm: str, model, sentences, seed: int) -> None:
        bench.test = sentences
        hits = bench.hits(model)
        row = arms.setdefault(arm, {"hits": [], "accuracy": []})
        row["hits"].append(reference.pack(hits))
        row["accuracy"].append(round(float(hits.float().mean()), 4))
        print(arm, seed, row["accuracy"], flush=True)

    adapter = config_of("bottleneck")
    done = len(arms.get("labelled dialect", {"hits": []})["hits"])
    for seed in list(DIALECT_SEEDS)[done:]:
        bench.train = mb.data.text.Sentences(tokenizer, task.train.first(TRAIN))
        model, _ = bench.run(adapter, lr, seed)
        keep("plain English: task adapter", model, plain, seed)
        keep("task adapter alone", model, hard, seed)
        mb.finetuning.train_language_adapter(
            model, tokenizer, task.train.texts[TRAIN:], mb.data.text.without_vowels,
            mb.finetuning.LanguageAdapterConfig(steps=steps, batch_size=16, seed=seed),
        )  # fmt: skip
        mb.finetuning.activate_(model, "language")
        keep("language adapter alone", model, hard, seed)
        mb.finetuning.activate_(model, "language", "task")
        keep("language + task adapter", model, hard, seed)
        bench.train = in_dialect(task.train.first(TRAIN))
        model, _ = bench.run(adapter, lr, seed, epochs=DIALECT_EPOCHS)
        keep("labelled dialect", model, hard, seed)
        reference.record(
            "finetuning-dialect",
            f"A task adapter trained on {TRAIN:,} labelled sentences of plain English, "
            f"a language adapter trained on other, unlabelled sentences with and "
            f"without vowels, both alone and stacked; and a task adapter trained on "
            f"the same {TRAIN:,} sentences with labels, but without vowels: {steps} "
            f"steps of 16 for either training on the dialect, {len(DIALECT_SEEDS)} "
            f"seeds.",
            command, task.name, found,
        )  # fmt: skip


PARTS = {"rates": rates, "methods": methods, "ranks": ranks, "dialect": dialect}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    part = parser.parse_args().part
    torch.set_num_threads(mb.core.settings.load().threads)
    command = f"python tests/benchmarks/finetuning_reference.py {part}"
    PARTS[part](command)


if __name__ == "__main__":
    main()
