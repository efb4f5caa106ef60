"""Notebook 04: a small LLM in few bits: GPTQ, GGUF, and the engines that run them."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        # rounding weights to a grid
        "QuantConfig": ".quantization.affine",
        "round_to_nearest": ".quantization.affine",
        "bits_per_weight": ".quantization.affine",
        "grid": ".quantization.affine",
        "round_model_": "calibrate",
        # GPTQ: one layer, then the model
        "hessian": "gptq",
        "gptq_layer": "gptq",
        "output_error": "gptq",
        "quantize_": "calibrate",
        "set_weights_": "calibrate",
        "save": "checkpoint",
        "load": "checkpoint",
        # GGUF files, and the engines that run them
        "write_gguf": "gguf",
        "read_gguf": ".assets.gguf_file",
        "quantize_gguf": "engines.llama_cpp",
        "chat_prompt": ".data.dialogue",
        "engines": "engines",
    },
)
