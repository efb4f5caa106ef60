"""Notebook 01: transfer learning with MobileNetV2.

Other chapters start from what is trained here, so the code lies a floor below, in
``training/``; the network is in ``models/mobilenet.py``.
"""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "score": ".training.image_classifier",
        "MultiStageFeatures": ".training.image_classifier",
        "extract": ".training.features",
        "HeadConfig": ".training.image_classifier",
        "train_head": ".training.image_classifier",
        "train_heads": ".training.image_classifier",
        "predict": ".training.image_classifier",
        "Standardise": ".training.image_classifier",
        "split": ".training.image_classifier",
        "StagesConfig": ".training.image_classifier",
        "fine_tune": ".training.image_classifier",
        "save": ".training.weights",
        "load_": ".training.weights",
    },
)
