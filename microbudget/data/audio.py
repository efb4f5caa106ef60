"""One recording: read, checked, mono, at 16,000 samples a second, for Whisper."""

import base64
import io
from pathlib import Path

import numpy as np

from ..core.errors import DataError

RATE = 16_000  # samples a second, Whisper's
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_LONGEST = 24 * 3600.0  # seconds
_RATES = 1000, 768_000  # samples a second of any recording
_LOUDEST = 8.0  # a float's magnitude; of sound it is 1 and, badly mixed, a little more
SILENCE_PEAK = 1e-4  # peak of a silent recording: −80 dB below full scale


def read(path: str | Path) -> np.ndarray:
    """A recording of any rate and number of channels: float32 (samples,) at RATE.

    Channels are averaged; rates are converted by soxr.

    Raises:
        DataError: missing, unreadable, too short, silent, or not finite.
    """
    import soundfile

    try:
        info = soundfile.info(path)
        if info.duration > _LONGEST or not _RATES[0] <= info.samplerate <= _RATES[1]:
            raise ValueError(
                f"its header claims {info.duration / 3600:,.0f} hours at "
                f"{info.samplerate:,} Hz"
            )
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as sound ({error}). Convert it to wav, flac or ogg, "
            "or copy it again if it may be damaged."
        ) from error
    return prepare(samples, rate, Path(path).name)


def prepare(samples: np.ndarray, rate: int, name: str = "the recording") -> np.ndarray:
    """Samples of any rate to float32 (samples,) at RATE, checked.

    Args:
        samples: floats in −1…1 (samples,) or (samples, channels); integers are scaled.
        rate: samples a second.

    Raises:
        DataError: of a wrong shape, not finite, too short, or silent.
    """
    import soxr

    samples = np.asarray(samples)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise DataError(f"{name}: {rate} samples a second are no sound's rate.")
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0] > 0:
        raise DataError(
            f"{name} has the shape {samples.shape}: that would be {samples.shape[1]:,} "
            "channels. Transpose it to (samples, channels)."
        )
    seconds = len(samples) / rate
    if seconds < 0.1:
        raise DataError(f"{name} lasts {seconds:.3f} s: too short to hold a word.")
    if np.issubdtype(samples.dtype, np.integer):
        info = np.iinfo(samples.dtype)
        samples = (samples - (info.max + info.min + 1) / 2) / 2.0 ** (info.bits - 1)
    # (samples,) or (samples, channels) -> (samples,)
    mono = samples.astype(np.float32).reshape(len(samples), -1).mean(axis=1)
    if not np.isfinite(mono).all():
        raise DataError(
            f"{name} has {(~np.isfinite(mono)).sum():,} samples that are not numbers "
            "(NaN or infinite). Export it again."
        )
    require_sound(mono, name)
    if np.abs(mono).max() < SILENCE_PEAK <= np.abs(samples).max():
        raise DataError(
            f"{name} has channels of opposite phase: their mean is silence. Keep one "
            "channel: samples[:, 0]."
        )
    if np.abs(mono).max() < SILENCE_PEAK:
        raise DataError(
            f"{name} is silent. Whisper would invent words for it (the notebook shows "
            "which): check the microphone, or leave it out."
        )
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE)
    return np.ascontiguousarray(mono, dtype=np.float32)


def require_sound(samples: np.ndarray, name: str = "the recording") -> None:
    """Raise a DataError for floats that are integers cast, not sound in −1 … 1."""
    if len(samples) and (peak := float(np.abs(samples).max())) > _LOUDEST:
        raise DataError(
            f"{name} has samples up to {peak:,.0f}: sound lies between −1 and 1. "
            "Samples of 16 bits that were cast to floats must be divided by 32768."
        )


def with_noise(samples: np.ndarray, snr_db: float, seed: int = 0) -> np.ndarray:
    """White Gaussian noise added at a signal-to-noise ratio.

    SNR = 10·log10(P_signal / P_noise), with powers averaged over the recording.

    Args:
        samples: float32 (samples,).
        snr_db: decibels; infinity adds none.
    """
    power = float(np.mean(samples.astype(np.float64) ** 2))
    noise = np.random.default_rng(seed).standard_normal(len(samples))
    noise *= np.sqrt(power / 10 ** (snr_db / 10))
    return (samples + noise).astype(np.float32)


def player(samples: np.ndarray) -> str:
    """An HTML audio player with the sound inside it, about 1.2 kB a second.

    Opus at some 7 kbit/s; the models get the full recording.
    """
    import soundfile

    sound = io.BytesIO()
    soundfile.write(
        sound, samples, RATE, format="OGG", subtype="OPUS", compression_level=1.0
    )
    text = base64.b64encode(sound.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/ogg;base64,{text}"></audio>'
