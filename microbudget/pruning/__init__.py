"""Notebook 07: pruning."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "criteria": "criteria",
        "masks": "masks",
        "lottery": "lottery",
        "semi_structured": "semi_structured",
        "channels": "channels",
        "mobilenet": "mobilenet",
        "mobilenet_reconstruct": "mobilenet_reconstruct",
        "bert": "bert",
        "bert_removal": "bert_removal",
        "reconstruction": "reconstruction",
        "flower_baselines": "flower_baselines",
    },
)
