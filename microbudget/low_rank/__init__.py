"""Notebook 08: low-rank factorization."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        # one linear layer: W ≈ up · down
        "svd": "decomposition",
        "break_even": "decomposition",
        # a whole model
        "decompose": "decomposition",
        "uniform_ranks": "decomposition",
        "factorize": "decomposition",
        "save": "checkpoint",
        "load": "checkpoint",
        # by inputs, and by the loss
        "DAMPING": "data_aware",
        "data_aware_svd": "data_aware",
        "data_aware_decompose": "data_aware",
        "output_error": "data_aware",
        # ranks that share a budget
        "count_weights": "decomposition",
        "ranks_by_budget": "budget",
        # convolutions
        "named_convolutions": "convolution",
        "collect_outputs": "convolution",
        "convolution_svd": "convolution",
        "decompose_convolutions": "convolution",
    },
)
