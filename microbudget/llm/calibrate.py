"""A whole transformer, quantized while calibration text flows through it once.

Each linear layer is quantized the moment its inputs arrive, and the model goes on with
the rounded weights: the layers behind it are calibrated on what the rounded layers
before them really give. Linear layers that receive the same tensor (queries, keys and
values; gate and up) share one Hessian and are rounded together.
"""

from collections import Counter
from contextlib import ExitStack

import torch
from torch import nn

from ..core.errors import QuantizationError
from ..core.modules import named_linear_layers
from ..core.progress import bar
from ..quantization.affine import (
    QuantConfig,
    QuantizedTensor,
    require_matrix,
    round_to_nearest,
)
from .gptq import gptq_layer, hessian

_TOKENS_PER_INPUT = 2


@torch.no_grad()
def quantize_(
    model: nn.Module, ids: torch.Tensor, config: QuantConfig
) -> dict[str, QuantizedTensor]:
    """GPTQ for every linear layer of a transformer but its head; changes ``model``.

    Afterwards the model computes with the rounded weights, still stored in its own
    type; ``checkpoint.save`` packs them. If it is interrupted, some layers are rounded
    and others aren't: load the model again.

    Args:
        model: any of transformers' models that uses each linear layer once a pass.
        ids: token ids of the calibration text (sequences, tokens).

    Returns:
        The name of every linear layer -> its quantized weight.

    Raises:
        QuantizationError: too little calibration text, weights that can't be quantized,
            a model that uses a linear layer twice, or not at all.
        MicrobudgetError: there are no plain linear layers.
    """
    layers = linear_layers(model)
    for name, linear in layers.items():
        require_matrix(linear.weight, config, name)
    min_tokens = _TOKENS_PER_INPUT * max(layer.in_features for layer in layers.values())
    if ids.numel() < min_tokens:
        raise QuantizationError(
            f"Calibration needs at least {min_tokens} tokens for layers as wide as "
            f"this model's, got {ids.numel()}: with fewer, the Hessian says little."
        )
    ids, names = ids.to(model.device), {m: name for name, m in layers.items()}
    model.eval()
    groups = _groups_by_input(model, ids[:1], layers)
    results: dict[str, QuantizedTensor] = {}
    progress = bar(total=len(groups), description="GPTQ")

    def quantize_group(first: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
        """Runs before the group's first layer computes."""
        group = groups[first]
        stacked = torch.cat([linear.weight.float() for linear in group])
        whole = gptq_layer(stacked, hessian(inputs[0]), config)
        parts = whole.split_rows([linear.out_features for linear in group])
        for linear, part in zip(group, parts, strict=True):
            linear.weight.copy_(part.dequantize())
            results[names[linear]] = part
        progress.update()

    with ExitStack() as hooks, progress:
        for first in groups:
            hooks.enter_context(first.register_forward_pre_hook(quantize_group))
        model.base_model(ids, use_cache=False)  # without the head: it costs memory
    return results


@torch.no_grad()
def round_model_(model: nn.Module, config: QuantConfig) -> dict[str, QuantizedTensor]:
    """The same layers rounded to nearest, without calibration; changes ``model``."""
    results = {}
    for name, linear in linear_layers(model).items():
        require_matrix(linear.weight, config, name)
        results[name] = round_to_nearest(linear.weight, config)
    set_weights_(model, results)
    return results


@torch.no_grad()
def set_weights_(model: nn.Module, tensors: dict[str, QuantizedTensor]) -> nn.Module:
    """Write quantized weights, by name, into a model's plain linear layers."""
    for name, tensor in tensors.items():
        model.get_submodule(name).weight.copy_(tensor.dequantize())
    return model


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """A model's plain linear layers by name, without its head."""
    head = model.get_output_embeddings()
    found = named_linear_layers(model)
    return {name: linear for name, linear in found.items() if linear is not head}


def _groups_by_input(
    model: nn.Module, ids: torch.Tensor, layers: dict[str, nn.Linear]
) -> dict[nn.Linear, list[nn.Linear]]:
    """Linear layers that receive the very same tensor, by the first of them."""
    groups: dict[int, list[nn.Linear]] = {}
    inputs = []  # kept alive: Python gives the id of a freed tensor to the next one

    def record(linear, arguments):
        inputs.append(arguments[0])
        groups.setdefault(id(arguments[0]), []).append(linear)

    with ExitStack() as hooks:
        for linear in layers.values():
            hooks.enter_context(linear.register_forward_pre_hook(record))
        model.base_model(ids, use_cache=False)
    called = Counter(linear for group in groups.values() for linear in group)
    if odd := [name for name, linear in layers.items() if called[linear] != 1]:
        raise QuantizationError(
            f"{odd[0]} isn't used exactly once a pass. Models that choose among their "
            "layers (mixtures of experts), or share them, can't be calibrated here."
        )
    return {group[0]: group for group in groups.values()}
