"""Notebook 02: distilling Whisper."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "encode": "recognition",  # sound -> encoder states, batch by batch
        "decode": "recognition",  # encoder states -> texts
        "transcribe": "recognition",  # sound -> texts
        "in_precision": "recognition",  # a copy in bfloat16 where that is faster
        "EncodedBatch": "recognition",
        "window_seconds": "recognition",
        "greedy_decode": "decoding",  # encoder states -> tokens
        "DecodingRules": "decoding",  # the prompt, and which tokens are suppressed
        "prepare_targets": "student_training",  # what the teacher says, cached
        "DistilDataset": "student_training",
        "DistilConfig": "student_training",
        "train": "student_training",
        "speculate": "speculative",  # the student drafts, the teacher verifies
    },
)
