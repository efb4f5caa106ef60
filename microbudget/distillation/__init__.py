"""Notebook 06: knowledge distillation."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "students": "students",
        "teacher_cache": "teacher_cache",
        "train": "train",
        "mutual": "mutual",
        "sequence": "sequence",
    },
)
