"""The recorded run of notebook 02: a student with ten times the steps, and controls.

    MICROBUDGET_DATA=FOLDER python tests/benchmarks/whisper_reference.py

The same student is trained on the teacher's probabilities and transcripts, on its
transcripts alone, and on the clips' own texts alone, for as many steps. Nothing is
chosen on the test clips. What is in ``data/reference`` already isn't computed twice.
"""

import time

import torch

import microbudget as mb
from microbudget.course import reference

NAME, COMMAND = "whisper-student", "python tests/benchmarks/whisper_reference.py"
CLIPS, STEPS, VALIDATION, EVERY = 480, 640, 24, 4  # EVERY: epochs between evaluations
ARMS = {  # (α_soft, α_hard), labels from the texts
    "soft targets and transcripts": ((0.8, 1.0), False),
    "transcripts alone": ((0.0, 1.0), False),
    "reference texts alone": ((0.0, 1.0), True),
}


def encoded(teacher, clips):
    sounds = [clip.samples() for clip in clips]
    return list(mb.speech_distillation.encode(teacher, sounds, window="clip"))


def errors_of(model, batches, clips) -> list[tuple[int, int]]:
    """(errors, words) of every clip."""
    texts = mb.speech_distillation.decode(model, batches)
    found = mb.evaluation.word_errors([clip.text for clip in clips], texts)
    return [(int(errors), int(words)) for errors, words in found.per_clip]


def rate(per_clip) -> float:
    return sum(errors for errors, _ in per_clip) / sum(words for _, words in per_clip)


def main() -> None:
    torch.set_num_threads(mb.core.settings.load().threads)
    path = reference.folder() / f"{NAME}.json"
    found = reference.load(NAME)["result"] if path.exists() else {"arms": {}}
    speech, teacher = mb.data.speech.load(), mb.models.whisper.teacher()
    sets = {"validation": mb.data.speech.evenly_spaced(speech.val, VALIDATION)}
    sets |= speech.tests
    fast = mb.speech_distillation.in_precision(teacher)
    states = {name: encoded(fast, clips) for name, clips in sets.items()}
    found["teacher"] = {n: errors_of(fast, states[n], sets[n]) for n in sets}
    found["clips"] = {n: len(clips) for n, clips in sets.items()}
    train_clips = mb.data.speech.evenly_spaced(speech.train, CLIPS)
    for arm, (alphas, from_text) in ARMS.items():
        if arm in found["arms"]:
            continue
        started = time.perf_counter()
        targets = mb.speech_distillation.prepare_targets(
            teacher, train_clips, from_text=from_text
        )
        prepared = time.perf_counter() - started
        print(f"{arm}: {len(targets)} clips, {prepared:.0f} s", flush=True)
        student = mb.models.whisper.student(teacher)
        curve = {"steps": [], "wer": []}
        epoch_steps = -(-len(targets) // 16)
        epoch = 0

        def evaluate(_, student=student, curve=curve, epoch_steps=epoch_steps):
            nonlocal epoch
            epoch += 1
            if epoch % EVERY == 0:
                clips = sets["validation"]
                wer = rate(errors_of(student, states["validation"], clips))
                curve["steps"].append(epoch * epoch_steps)
                curve["wer"].append(round(wer, 4))
                print(f"  step {curve['steps'][-1]}: WER {wer:.3f}", flush=True)
            return {}

        config = mb.speech_distillation.DistilConfig(
            steps=STEPS, alpha_soft=alphas[0], alpha_hard=alphas[1]
        )
        started = time.perf_counter()
        history = mb.speech_distillation.train(
            student, targets, config, evaluate=evaluate
        )
        fast_student = mb.speech_distillation.in_precision(student)
        found["arms"][arm] = {
            "losses": [round(loss, 3) for loss in history.losses],
            "curve": curve,
            "errors": {n: errors_of(fast_student, states[n], sets[n]) for n in sets},
            "training clips": len(targets),
            "hours": sum(clip.seconds for clip in train_clips) / 3600,
            "seconds": round(prepared + time.perf_counter() - started),
        }
        errors = found["arms"][arm]["errors"]
        print({n: round(rate(e), 3) for n, e in errors.items()}, flush=True)
        reference.record(
            NAME,
            f"A student with two of four decoder layers, trained for {STEPS} steps of "
            f"16 clips, in three ways; one seed each.",
            COMMAND,
            f"{CLIPS} training clips ({speech.name}), validation and test clips",
            found,
        )


if __name__ == "__main__":
    main()
