"""Notebook 01: transfer learning with MobileNetV2."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "PooledDepths": ".training.image_classifier",
        "Standardise": ".training.image_classifier",
        "linear_head": ".training.image_classifier",
        "dense_head": ".training.image_classifier",
        "train_head": ".training.image_classifier",
        "predict": ".training.image_classifier",
        "score": ".training.image_classifier",
        "split": ".training.image_classifier",
        "fine_tune": ".training.image_classifier",
        "save": ".training.image_classifier",
        "load": ".training.image_classifier",
    },
)
