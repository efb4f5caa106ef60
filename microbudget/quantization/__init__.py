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
        "QUANTIZED_TYPES": "fake_quant",
        "value_range": "mapping",
        "symmetric_mapping": "mapping",
        "sqnr": "affine",
        "weight_mapping": "mapping",
        "OBSERVERS": "observers",
        "IntegerLinear": "integer",
        # whole models
        "fake_quantize": "fake_quant",
        "calibrate_": "fake_quant",
        "to_int8": "kernels",
        "save": "checkpoint",
        "load": "checkpoint",
        "fake_quantized_layers": "fake_quant",
        "choose_bits": "mixed",
        "mean_bits": "mixed",
    },
)
