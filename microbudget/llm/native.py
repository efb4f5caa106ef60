"""PyTorch's own road: torchao's weights in int8, for any model, on any device."""

import warnings

from torch import nn

from ..core.errors import QuantizationError
from .calibrate import linears


def int8_weights(model: nn.Module) -> nn.Module:
    """Weights of linear maps in int8, a scale a row; arithmetic as before. In place.

    Raises:
        QuantizationError: there is no plain linear map to quantize.
    """
    from torchao.quantization import Int8WeightOnlyConfig

    return _with_torchao(model, Int8WeightOnlyConfig())


def int8_dynamic(model: nn.Module) -> nn.Module:
    """Weights and inputs in int8, the inputs' scales found at every call. In place.

    Only fast once compiled (``torch.compile``, which needs a C++ compiler on a CPU).
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _with_torchao(model, Int8DynamicActivationInt8WeightConfig())


def int4_weights(model: nn.Module, group: int = 64) -> nn.Module:
    """Packed 4-bit weights with torchao's kernel for GPUs. In place.

    Raises:
        QuantizationError: on a CPU, where torchao has no packed 4 bits any more, or a
            model that isn't in bfloat16.
    """
    import torch
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    weight = next(model.parameters())
    if not weight.is_cuda or weight.dtype != torch.bfloat16:
        raise QuantizationError(
            "torchao packs 4-bit weights on a GPU and in bfloat16 only (0.18 has no "
            "kernel for CPUs). Use GPTQ, bitsandbytes' NF4 or GGUF here."
        )
    tiled = Int4PackingFormat.TILE_PACKED_TO_4D  # tinygemm's, which torch has
    config = Int4WeightOnlyConfig(group_size=group, int4_packing_format=tiled)
    return _with_torchao(model, config)


def _with_torchao(model: nn.Module, config) -> nn.Module:
    from torchao.quantization import quantize_

    if not any(True for _ in linears(model)):
        raise QuantizationError("No plain linear map to quantize: is it done already?")
    head = getattr(
        model, "get_output_embeddings", lambda: None
    )()  # often the embedding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torchao will rename next
        try:
            quantize_(
                model, config, lambda m, _: type(m) is nn.Linear and m is not head
            )
        except (ImportError, AssertionError) as error:
            raise QuantizationError(f"torchao can't do this here: {error}") from error
    return model
