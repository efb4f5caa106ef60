"""Notebook 08: low-rank factorization."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "factorize": "factorize",
        "data_aware": "data_aware",
        "conv": "conv",
        "budget": "budget",
        "checkpoint": "checkpoint",
    },
)
