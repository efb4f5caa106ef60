"""Notebook 03: parameter-efficient fine-tuning."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "apply_": "methods",
        "FullConfig": "methods",
        "TopLayersConfig": "methods",
        "HeadOnlyConfig": "methods",
        "BitFitConfig": "methods",
        "BottleneckConfig": "methods",
        "FinetuneConfig": ".training.text_classifier",
        "train": ".training.text_classifier",
        "predict": ".training.text_classifier",
        "score": ".training.text_classifier",
        "embed": ".training.text_classifier",
        "optimizer": ".training.text_classifier",
        "save": "saving",
        "load_": "saving",
        "merge_": "methods",
        "activate_": "methods",
        "LanguageAdapterConfig": "language_adapter",
        "train_language_adapter": "language_adapter",
        "train_llm": "instruction",
        "answer": "instruction",
        "answer_loss": "instruction",
        "held_out_loss": "instruction",
    },
)
