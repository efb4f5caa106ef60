"""Distilling tiny.en's decoder: WER of the student, over seeds and both weightings.

    python tests/benchmarks/whisper_distillation.py [--seeds 3] [--steps 400]

Trains on the course's own clips; evaluates on its validation and test clips and, with
MICROBUDGET_DATA, on real speech. Learning rate and data were chosen on the validation
clips and on the real clips with even numbers (DEV); the odd ones are TEST.
"""

import argparse
import time

import numpy as np
import torch

import microbudget as mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--window", default="clip", choices=["clip", "standard"])
    asked = parser.parse_args()
    torch.set_num_threads(mb.core.settings.load().threads)
    speech, sd = mb.data.speech.load(), mb.speech_distillation
    sets = {"val": speech.val, **speech.tests}
    if real := speech.tests.get("real"):
        sets |= {"real DEV": real[::2], "real TEST": real[1::2]}
    teacher = mb.models.whisper.load("whisper-tiny.en")
    encoded = {
        name: list(
            sd.encode(teacher, [c.samples() for c in clips], window=asked.window)
        )
        for name, clips in sets.items()
    }
    results: dict[tuple[str, str], list[float]] = {}

    def evaluate(label, whisper, seed=""):
        for name, clips in sets.items():
            for blocked in (False, True):
                texts = sd.decode(whisper, encoded[name], block_loops=blocked)
                errors = mb.evaluation.word_errors([c.text for c in clips], texts)
                kind = label + ", loops blocked" * blocked
                print(f"{kind:34} {seed:7} {name:10} {errors}", flush=True)
                results.setdefault((kind, name), []).append(errors.wer)

    evaluate("teacher", teacher)
    evaluate("untrained", mb.models.whisper.student(teacher))
    started, busy = time.perf_counter(), time.process_time()
    train_clips = mb.data.speech.evenly_spaced(speech.train, asked.clips)
    targets = sd.prepare_targets(teacher, train_clips)
    print(
        f"targets of {len(targets)} clips ({len(targets.dropped)} dropped, "
        f"{targets.bytes() / 1e6:.0f} MB): {time.perf_counter() - started:.1f} s, "
        f"CPU {time.process_time() - busy:.1f} s"
    )
    for weighting, (soft, hard) in sd.ALPHAS.items():
        for seed in range(asked.seeds):
            student = mb.models.whisper.student(teacher)
            config = sd.DistilConfig(
                steps=asked.steps, alpha_soft=soft, alpha_hard=hard, seed=seed
            )
            started, busy = time.perf_counter(), time.process_time()
            history = sd.train(student, targets, config)
            print(
                f"{weighting} seed {seed}: {len(history.losses)} steps, "
                f"{time.perf_counter() - started:.1f} s, "
                f"CPU {time.process_time() - busy:.1f} s, "
                f"last losses {np.mean(history.losses[-20:]):.3f}"
            )
            evaluate(weighting, student, f"seed {seed}")
    for (kind, name), rates in results.items():
        print(f"{kind:26} {name:10} mean {np.mean(rates):.1%} of {len(rates)} runs")


if __name__ == "__main__":
    main()
