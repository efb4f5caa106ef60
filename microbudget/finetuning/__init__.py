"""Notebook 03: parameter-efficient fine-tuning."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "methods": "methods",
        "language_adapter": "language_adapter",
        "instruction": "instruction",
    },
)
