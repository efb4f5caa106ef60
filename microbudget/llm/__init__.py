"""Notebook 04: a small LLM in few bits: GPTQ, GGUF, and the engines that run them."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "gptq": "gptq",
        "calibrate": "calibrate",
        "checkpoint": "checkpoint",
        "packing": "packing",
        "packed": "packed",
        "native": "native",
        "sensitivity": "sensitivity",
        "flow": "flow",
        "gguf": "gguf",
        "gguf_blocks": "gguf_blocks",
        "engines": "engines",
    },
)
