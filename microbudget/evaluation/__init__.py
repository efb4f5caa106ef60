"""How good, how large, how fast: what the course measures, and how."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "accuracy": "metrics",
        "classification": "metrics",
        "confusion_matrix": "metrics",
        "most_confused": "metrics",
        "standard_error": "metrics",
        "paired_difference": "metrics",
        "Timing": "timing",
        "measure_latency": "timing",
        "measure_in_turn": "timing",
        "bytes_on_disk": "sizes",
        "stored_bytes": "sizes",
        "count_parameters": "sizes",
        "bits_per_weight": "sizes",
        "memory": "memory",
        "training_memory": "training_memory",
        "moments": "moments",
        "generation": "generation",
        "read": "perplexity",
        "perplexity_ratio": "perplexity",
        "log_probabilities": "perplexity",
        "last_words": "perplexity",
        "word_errors": "wer",
        "wer_difference": "wer",
        "normalise": "wer",
        "rtfx": "wer",
        "where_time_goes": "profiling",
        "memory_bandwidth": "roofline",
        "bytes_a_token": "roofline",
        "decode_bound": "roofline",
        "front": "pareto",
    },
)
