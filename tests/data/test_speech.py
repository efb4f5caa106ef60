"""Reading speech: any file, any rate, clear words about bad ones; and its sets."""

import io
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from microbudget.core.errors import DataError
from microbudget.data import audio, speech
from microbudget.data.synthetic import speech as voice


def tone(seconds=1.0, rate=16_000, pitch=440.0):
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_rate_and_channels(suffix, rate, channels, tmp_path):
    path = tmp_path / f"tone.{suffix}"
    if suffix == "mp3" and rate == 8_000:
        rate = 48_000
    both = np.stack([tone(1.0, rate)] * channels, axis=1)
    soundfile.write(path, both, rate)
    samples = audio.read(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) / audio.RATE - 1.0) < 0.15  # mp3 pads
    spectrum = np.abs(np.fft.rfft(samples[:16_000]))
    assert abs(np.argmax(spectrum) * 16_000 / len(samples[:16_000]) - 440) < 3


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4"])
def test_integers_span_minus_one_to_one(dtype):
    info = np.iinfo(dtype)
    middle = (int(info.max) + int(info.min) + 1) // 2
    samples = np.array([info.min, middle, info.max] * 8000, dtype)
    out = audio.prepare(samples, 16_000)
    np.testing.assert_allclose(out[:3], [-1, 0, 1], atol=0.01)
    with pytest.raises(DataError, match="silent"):
        audio.prepare(np.full(16_000, middle, dtype), 16_000)


def test_channels_are_averaged():
    left, right = np.full(44_100, 0.5), np.full(44_100, -0.1)
    mono = audio.prepare(np.stack([left, right], 1), 44_100)
    np.testing.assert_allclose(mono[200:-200], 0.2, atol=1e-3)
    assert len(mono) == 16_000


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros(0), "lasts 0.000 s"),
        (np.zeros((0, 2)), "lasts 0.000 s"),
        (np.zeros(16_000), "is silent"),
        (np.full(16_000, 5e-5), "is silent"),
        (np.array([0.1, np.nan] * 8000), "8,000 samples that are not numbers"),
        (np.array([0.1, np.inf] * 8000), "not numbers"),
        (tone(0.05), "lasts 0.050 s"),
        (np.zeros((2, 16_000)), "Transpose"),
    ],
)
def test_bad_samples_are_clear_errors(samples, says):
    with pytest.raises(DataError, match=says):
        audio.prepare(samples, 16_000, "x.wav")


def test_unreadable_files_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match=r"absent\.wav can't be read"):
        audio.read(tmp_path / "absent.wav")
    (tmp_path / "text.wav").write_text("this is not sound")
    with pytest.raises(DataError, match="can't be read as sound"):
        audio.read(tmp_path / "text.wav")
    soundfile.write(tmp_path / "cut.flac", tone(), 16_000)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        audio.read(tmp_path / "cut.flac")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 16_000)
    with pytest.raises(DataError, match=r"empty\.wav lasts 0.000 s"):
        audio.read(tmp_path / "empty.wav")


@given(snr=st.floats(-10, 40), seed=st.integers(0, 9))
def test_noise_has_the_ratio_asked_for(snr, seed):
    clean = tone(2.0).astype("f4")
    noise = audio.with_noise(clean, snr, seed).astype("f8") - clean
    measured = 10 * np.log10(np.mean(clean.astype("f8") ** 2) / np.mean(noise**2))
    assert abs(measured - snr) < 0.2
    assert np.array_equal(audio.with_noise(clean, np.inf), clean)


def test_a_player_is_small_and_holds_the_sound():
    html = audio.player(tone(10.0).astype("f4"))
    assert html.startswith("<audio controls")
    assert len(html) < 30_000


# -- sets ---------------------------------------------------------------------------


def librispeech(folder, sets=("dev-clean", "test-clean"), clips=3, speakers=("84",)):
    for name in sets:
        for who in speakers:
            place = folder / "LibriSpeech" / name / who / "121"
            place.mkdir(parents=True)
            lines = []
            for i in range(clips):
                path = place / f"{who}-121-{i:04d}.flac"
                soundfile.write(path, tone(0.5 + i % 3), 16_000)
                lines.append(f"{who}-121-{i:04d} SOME WORDS {i}")
            (place / f"{who}-121.trans.txt").write_text("\n".join(lines) + "\n\n")
    return folder


def test_librispeechs_folders(home, tmp_path):
    sets = speech.read_folder(librispeech(tmp_path))
    assert {name: len(clips) for name, clips in sets.items()} == {
        "train": 0, "val": 3, "test": 3,
    }  # fmt: skip
    clip = sets["test"][2]
    assert clip.text == "SOME WORDS 2"
    assert clip.seconds == pytest.approx(2.5)
    assert len(clip.samples()) == 40_000


def test_without_train_sets_dev_is_split(tmp_path):
    folder = librispeech(tmp_path, clips=130)
    found = speech.load(folder)
    assert (len(found.train), len(found.val), len(found.test)) == (66, 64, 130)
    assert not found.is_course_data
    assert not found.train_is_generated
    assert "real recordings" in found.describe()


def test_no_speaker_is_in_both_halves_of_dev(tmp_path):
    folder = librispeech(tmp_path, clips=50, speakers=("84", "174", "251"))
    found = speech.load(folder)
    who = [{c.path.parent.parent.name for c in s} for s in (found.train, found.val)]
    assert who[0]
    assert who[1]
    assert not who[0] & who[1]
    assert len(found.train) + len(found.val) == 150


def test_a_folder_to_test_on_borrows_synthetic_training_clips(tmp_path):
    found = speech.load(librispeech(tmp_path, sets=("test-clean",)))
    assert list(found.tests) == ["real", "generated"]
    assert found.train_is_generated
    assert len(found.train) > 400
    assert "READ BY A MACHINE" in found.describe()


def test_the_course_has_speech_of_its_own(monkeypatch):
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    found = speech.load()
    assert found.is_course_data
    assert (len(found.train), len(found.val), len(found.test)) == (980, 48, 64)
    assert not {c.text for c in found.train} & {c.text for c in found.test}
    assert "generated, not recorded" in found.card
    assert 0.5 < len(found.train[0].samples()) / 16_000 < 20


def test_clips_are_spread_evenly():
    assert speech.evenly_spaced(tuple(range(10)), 5) == (0, 2, 4, 6, 8)
    assert speech.evenly_spaced(tuple(range(3)), 5) == (0, 1, 2)


def test_bad_folders_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="holds no speech"):
        speech.load(tmp_path)
    soundfile.write(tmp_path / "a.wav", tone(), 16_000)
    for text, says in [
        ("{", "no manifest"),
        ('[{"file": "a.wav"}]', "no manifest"),
        ("3", "no manifest"),
        ('[{"file": 3, "text": "hm"}]', "no manifest"),
        ('[{"file": "b.wav", "text": "hm"}]', "recording is missing"),
        ('[{"file": "a.wav", "text": " "}]', "empty transcript"),
        ('[{"file": "a.wav", "text": "hm", "set": "train"}]', "nothing to test on"),
    ]:
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=says):
            speech.load(tmp_path)


# -- the voice ----------------------------------------------------------------------


def test_the_texts_are_speakable_and_each_is_there_once():
    every = [t for files in voice.SETS.values() for f in files for t in voice.texts(f)]
    assert len(every) == len(set(every)) == 1092
    for text in every:
        assert text[-1] in ".?"
        assert not set(text) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,.;?'"
        ), text
    long = [text for text in every if len(text.split()) >= 30]
    assert len(long) > 150  # three sentences: training on short ones alone makes loops


def test_the_voice_reads_the_same_again(tmp_path, monkeypatch):
    two, progress = voice.texts("val")[:2], tqdm(file=io.StringIO())
    monkeypatch.setattr(voice, "SETS", {"train": ("a",), "val": ("b",), "test": ("c",)})
    monkeypatch.setattr(voice, "texts", lambda file: two)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        voice.generate_speech(folder, 0, progress)
        assert (progress.n, progress.total) == (6, 6)
    first, second = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")}
        for folder in folders
    )
    assert first == second
    entries = json.loads((folders[0] / "manifest.json").read_text())
    assert len(entries) == 6
    assert entries[0]["text"] == two[0]


def test_sound_in_a_form_that_is_no_sound(tmp_path):
    rng = np.random.default_rng(0)
    sound = (rng.standard_normal(audio.RATE) * 0.1).astype(np.float32)
    with pytest.raises(DataError, match="must be divided by 32768"):
        audio.prepare(sound * 32767, audio.RATE)
    with pytest.raises(DataError, match=r"opposite phase.*Keep one channel"):
        audio.prepare(np.stack([sound, -sound], 1), audio.RATE)
    soundfile.write(tmp_path / "slow.wav", sound, 1)
    with pytest.raises(
        DataError, match=r"slow\.wav can't be read.*claims 4 hours at 1"
    ):
        audio.read(tmp_path / "slow.wav")
