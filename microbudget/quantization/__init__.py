"""Notebook 05: quantization from scratch."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        # how a number is stored
        "FORMATS": "formats",
        "to_bits": "formats",
        "from_bits": "formats",
        "representable_numbers": "formats",
        # from floats to codes and back
        "affine_mapping": "mapping",
        "symmetric_mapping": "mapping",
        "weight_mapping": "mapping",
        "value_range": "mapping",
        "sqnr": "affine",
        "OBSERVERS": "observers",
        "IntegerLinear": "integer",
        # whole models
        "QUANTIZED_TYPES": "fake_quant",
        "fake_quantize": "fake_quant",
        "calibrate_": "fake_quant",
        "fake_quantized_layers": "fake_quant",
        "to_int8": "kernels",
        "save": "checkpoint",
        "load": "checkpoint",
        "choose_bits": "mixed",
        "mean_bits": "mixed",
        # the weights of language models (notebook 04)
        "affine": "affine",
    },
)
