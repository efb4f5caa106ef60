"""Distilling tiny.en's decoder: WER of the student, over seeds and both weightings.

    python tests/benchmarks/whisper_distillation.py [--seeds 3] [--steps 400]

Trains on the course's own clips; judged by its validation and test clips and, with
MICROBUDGET_DATA, by real speech. Learning rate and data were chosen on the validation
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
    parser.add_argument("--weightings", nargs="+", default=["paper", "code"])
    parser.add_argument("--window", default="clip", choices=["clip", "standard"])
    asked = parser.parse_args()
    torch.set_num_threads(mb.core.settings.load().threads)
    speech = mb.data.speech.load()
    sets = {"val": speech.val}
    for name, clips in speech.tests.items():
        sets |= (
            {"real DEV": clips[::2], "real TEST": clips[1::2]} if name == "real" else {}
        )
        sets[name] = clips
    sound = {name: [c.samples() for c in clips] for name, clips in sets.items()}
    teacher = mb.models.whisper.load("whisper-tiny.en")

    def judge(label, whisper):
        for name, clips in sets.items():
            texts = mb.speech_distillation.transcribe.transcribe(
                whisper, sound[name], window=asked.window
            )
            errors = mb.evaluation.word_errors([c.text for c in clips], texts)
            print(f"{label:34} {name:10} {errors}", flush=True)
            guarded = mb.evaluation.word_errors(
                [c.text for c in clips],
                mb.speech_distillation.transcribe.transcribe(
                    whisper, sound[name], window=asked.window, guard=True
                ),
            )
            print(f"{'  with the loop guard':34} {name:10} {guarded}", flush=True)
            guards = f"{label.split(' seed')[0]}, guarded"
            results.setdefault((guards, name), []).append(guarded.wer)
            results.setdefault((label.split(" seed")[0], name), []).append(errors.wer)

    results: dict = {}
    judge("teacher", teacher)
    judge("untrained", mb.models.whisper.student(teacher))
    started, busy = time.perf_counter(), time.process_time()
    learn = mb.data.speech.evenly_spaced(speech.train, asked.clips)
    lessons = mb.speech_distillation.distil.prepare(teacher, learn)
    print(
        f"prepared {len(lessons)} lessons ({len(lessons.dropped)} dropped, "
        f"{lessons.bytes() / 1e6:.0f} MB): {time.perf_counter() - started:.1f} s, "
        f"CPU {time.process_time() - busy:.1f} s"
    )
    for weighting in asked.weightings:
        for seed in range(asked.seeds):
            student = mb.models.whisper.student(teacher)
            started, busy = time.perf_counter(), time.process_time()
            history = mb.speech_distillation.distil.distil(
                student, lessons, steps=asked.steps, weighting=weighting, seed=seed
            )
            print(
                f"{weighting} seed {seed}: {len(history.losses)} steps, "
                f"{time.perf_counter() - started:.1f} s, "
                f"CPU {time.process_time() - busy:.1f} s, "
                f"last losses {np.mean(history.losses[-20:]):.3f}"
            )
            judge(f"{weighting} seed {seed}", student)
    for (label, name), rates in results.items():
        if len(rates) > 1:
            print(
                f"{label:10} {name:10} mean {np.mean(rates):.1%} of {len(rates)} seeds"
            )


if __name__ == "__main__":
    main()
