"""Speed of transcription: ours, transformers' pipeline, faster-whisper int8.

    python tests/benchmarks/transcription_speed.py [--clips 32] [--repeats 3]

On MICROBUDGET_DATA/speech where there is one, else on the course's own test clips. All
decode greedily on the same threads; the methods take turns, so that a busy moment hits
all. faster-whisper is measured when it is installed (`pip install faster-whisper`) and
reads the very file of the wheel, given as --ctranslate2 FOLDER.
"""

import argparse
import time
import warnings

import numpy as np
import torch
import transformers

import microbudget as mb


def ours(whisper, sound, **options):
    return lambda: mb.speech_distillation.transcribe(whisper, sound, **options)


def pipeline(whisper, sound):
    """One clip at a time, one beam, as its documentation shows it."""
    ask = transformers.pipeline(
        "automatic-speech-recognition",
        model=whisper.model,
        tokenizer=whisper.processor.tokenizer,
        feature_extractor=whisper.processor.feature_extractor,
        device=whisper.model.device,
    )
    options = {"num_beams": 1}

    def run():
        return [
            ask({"raw": clip.copy(), "sampling_rate": 16_000}, generate_kwargs=options)[
                "text"
            ].strip()
            for clip in sound
        ]

    return run


def faster_whisper(folder, sound, threads):
    from faster_whisper import WhisperModel

    model = WhisperModel(folder, "cpu", compute_type="int8", cpu_threads=threads)

    def run():
        texts = []
        for clip in sound:
            segments, _ = model.transcribe(
                clip, language="en", beam_size=1, temperature=0.0,
                without_timestamps=True, condition_on_previous_text=False,
            )  # fmt: skip
            texts.append(" ".join(s.text.strip() for s in segments))
        return texts

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=mb.core.settings.load().threads)
    parser.add_argument("--ctranslate2", metavar="FOLDER")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked.threads)
    speech = mb.data.speech.load()
    clips = mb.data.speech.evenly_spaced(speech.test, asked.clips)
    sound, said = [c.samples() for c in clips], [c.text for c in clips]
    seconds = sum(map(len, sound)) / 16_000
    whisper = mb.models.whisper.load("whisper-tiny.en")
    methods = {
        "transformers pipeline, fp32, one by one": pipeline(whisper, sound),
        "ours, fp32, one by one": ours(whisper, sound, batch_size=1, precision="no"),
        "ours, fp32, batch 8": ours(whisper, sound, precision="no"),
        "ours, auto precision, batch 8": ours(whisper, sound),
        "ours, auto, batch 8, cut windows": ours(whisper, sound, window="clip"),
    }
    if asked.ctranslate2:
        name = "faster-whisper int8, one by one"
        methods[name] = faster_whisper(asked.ctranslate2, sound, asked.threads)
    taken = {name: [] for name in methods}
    cpu = {name: [] for name in methods}
    texts = {}
    for turn in range(asked.repeats + 1):  # the first is the warm-up
        for name, method in methods.items():
            started, busy = time.perf_counter(), time.process_time()
            texts[name] = method()
            if turn:
                taken[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - busy)
    print(
        f"{speech.name}: {len(clips)} clips, {seconds:.0f} s; {asked.threads} threads, "
        f"{mb.course.run.processor_name()}; medians of {asked.repeats} (min–max)"
    )
    first = np.median(next(iter(taken.values())))
    for name, walls in taken.items():
        wall, errors = np.median(walls), mb.evaluation.word_errors(said, texts[name])
        print(
            f"{name:42} {wall:6.2f} s ({min(walls):.2f}–{max(walls):.2f}), "
            f"CPU {np.median(cpu[name]):6.2f} s, {first / wall:5.2f}×, "
            f"RTFx {seconds / wall:6.1f}, {errors}"
        )


if __name__ == "__main__":
    main()
