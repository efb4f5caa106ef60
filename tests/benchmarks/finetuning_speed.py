"""Tokens a second and peak memory: the course's loop against transformers.Trainer.

    python tests/benchmarks/finetuning_speed.py

LoRA of rank 8 on queries and values, the same weights, sentences, steps, precision and
optimizer. Each run is a process of its own, so that memory is its own; they take turns.
"Tokens" are real ones: padding is work, not a result.

    trainer           Trainer + peft, padded to each batch's longest, random order
    trainer, grouped  the same with its own batching by length
    trainer, stock    AutoModelForSequenceClassification as it comes: dropout, fused
                      attention; otherwise as the first
    ours              microbudget's loop
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time

import numpy as np
import peft
import torch
import transformers

import microbudget as mb

RUNS = ("ours", "trainer", "trainer, grouped", "trainer, stock")
LORA = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
WARM_UP = 64  # sentences of a training before the one that is measured


def ours(encoder, labelled):
    model = mb.finetuning.apply_(encoder.classifier(2), LORA)
    config = mb.finetuning.FinetuneConfig(lr=1e-3, epochs=1, batch_size=16)
    sentences = mb.data.text.Sentences(encoder.tokenizer, labelled)

    def train(n):
        part = mb.data.text.Sentences(encoder.tokenizer, labelled.first(n))
        mb.finetuning.train(model, part, config)

    return train, sum(sentences.lengths)


class WithLoss(torch.nn.Module):
    """The course's classifier, answering as Trainer expects."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, labels):
        logits = self.model(input_ids, attention_mask)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "logits": logits}


def with_trainer(encoder, labelled, kind):
    if kind == "trainer, stock":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            encoder.folder, num_labels=2
        )
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]
        )
        model = peft.get_peft_model(model, config)
    else:
        model = WithLoss(mb.finetuning.apply_(encoder.classifier(2), LORA))
    ids = encoder.tokenizer(list(labelled.texts), truncation=True, max_length=64)
    rows = [
        {"input_ids": row, "attention_mask": [1] * len(row), "labels": label}
        for row, label in zip(ids["input_ids"], labelled.labels, strict=True)
    ]

    def train(n):
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder, num_train_epochs=1, per_device_train_batch_size=16,
                learning_rate=1e-3, warmup_steps=0.1, max_grad_norm=1.0,
                bf16=mb.core.precision.of_training() == "bf16",
                use_cpu=mb.core.settings.device() == "cpu", optim="adamw_torch_fused",
                train_sampling_strategy=(
                    "group_by_length" if kind == "trainer, grouped" else "random"
                ),
                save_strategy="no", logging_strategy="no", report_to="none",
                disable_tqdm=True, remove_unused_columns=False, seed=0,
            )  # fmt: skip
            transformers.Trainer(
                model=model, args=arguments, train_dataset=rows[:n],
                data_collator=transformers.DataCollatorWithPadding(encoder.tokenizer),
            ).train()  # fmt: skip

    return train, sum(len(row["input_ids"]) for row in rows)


def one(kind: str, n: int) -> dict:
    torch.set_num_threads(mb.core.settings.load().threads)
    encoder, labelled = mb.models.bert.load(), mb.data.text.sentiment().train.first(n)
    made = ours(encoder, labelled) if kind == "ours" else None
    train, tokens = made or with_trainer(encoder, labelled, kind)
    with contextlib.redirect_stdout(sys.stderr):
        train(WARM_UP)
        mb.evaluation.release_memory()
        with mb.evaluation.peak_memory() as peak:
            started = time.perf_counter()
            train(n)
            seconds = time.perf_counter() - started
    return {
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "peak_MB": max(peak.highest, peak.device) / 1e6,
        "added_MB": peak.added / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=RUNS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.sentences)))
        return
    found = {kind: [] for kind in RUNS}
    for _ in range(args.repeats):
        for kind in RUNS:  # in turn, so that a slow minute hits all alike
            command = [sys.executable, __file__, "--one", kind]
            command += ["--sentences", str(args.sentences)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                sys.exit(run.stderr)
            found[kind].append(json.loads(run.stdout.splitlines()[-1]))
    base = np.median([run["tokens_per_s"] for run in found["trainer"]])
    for kind, runs in found.items():
        speeds = [run["tokens_per_s"] for run in runs]
        peaks = [run["peak_MB"] for run in runs]
        added = np.median([run["added_MB"] for run in runs])
        print(
            f"{kind:17} {np.median(speeds):7.0f} tokens/s "
            f"({min(speeds):.0f}–{max(speeds):.0f}), {np.median(speeds) / base:.2f} × "
            f"trainer; peak {np.median(peaks):.0f} MB "
            f"({min(peaks):.0f}–{max(peaks):.0f}), {added:.0f} of it added"
        )


if __name__ == "__main__":
    main()
