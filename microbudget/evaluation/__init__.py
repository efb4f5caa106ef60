"""How good, how large, how fast: what the course measures, and how."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        # quality
        "accuracy": "metrics",
        "confusion_matrix": "metrics",
        "most_confused": "metrics",
        "paired_difference": "metrics",
        "compare": "comparison",
        "interval": "comparison",
        "Difference": "comparison",
        "word_errors": "wer",
        "wer_difference": "wer",
        "normalize_text": "wer",
        "PerplexityResult": "perplexity",
        "evaluate_perplexity": "perplexity",
        "compare_kl": "perplexity",
        "perplexity_ratio": "perplexity",
        "log_probabilities": "perplexity",
        "last_words": "perplexity",
        # size
        "count_parameters": "sizes",
        "bytes_on_disk": "sizes",
        "stored_bytes": "sizes",
        "bits_per_weight": "sizes",
        # time
        "Timing": "timing",
        "measure_latency": "timing",
        "measure_in_turn": "timing",
        "FreshProcess": "timing",
        "speedup": "timing",
        "memory_bandwidth": "roofline",
        # memory
        "peak_memory": "memory",
        "release_memory": "memory",
        "measure_training_memory": "training_memory",
        "predict_training_memory": "training_memory",
        "encoder_activation_bytes": "training_memory",
        # what flows through a model, and which of several models to choose
        "Moments": "moments",
        "collect_moments": "moments",
        "collect_gradients": "moments",
        "pareto_front": "pareto",
    },
)
