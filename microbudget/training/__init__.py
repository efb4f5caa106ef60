"""One training loop, and what is trained with it in several chapters."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "fit": "loop",
        "TrainConfig": "loop",
        "BudgetCurve": "budget",
        "History": "loop",
        "epoch_order": ".data.batching",
        "global_batches": ".data.batching",
        "save": "weights",
        "load_": "weights",
        "features": "features",
        "image_classifier": "image_classifier",
        "HeadConfig": "image_classifier",
        "StagesConfig": "image_classifier",
        "text_classifier": "text_classifier",
        "FinetuneConfig": "text_classifier",
        "baselines": "baselines",
        "losses": "losses",
    },
)
