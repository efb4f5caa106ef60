"""Notebook 02: distilling Whisper."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "transcribe": "transcribe",
        "decoding": "decoding",
        "distil": "distil",
        "speculative": "speculative",
    },
)
