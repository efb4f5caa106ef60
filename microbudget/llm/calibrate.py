"""A whole transformer, layer by layer: calibration text flows through what is done.

Each layer sees its inputs as the layers before it, already quantized, have made them.
One pass is enough: a linear map is quantized the moment its inputs arrive, and the
layer goes on with the rounded weights. Maps that are given the same inputs (queries,
keys and values; gate and up) share one Hessian and are rounded together.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import nn

from ..core.errors import QuantizationError
from ..core.progress import bar
from ..quantization.affine import Quantized, Scheme, require_matrix, round_to_nearest
from . import flow, resume
from .gptq import gptq, hessian

_ENOUGH = 2  # calibration tokens that a layer should have for every input


def quantize(
    model: nn.Module,
    calibration: torch.Tensor,
    scheme: Scheme,
    *,
    folder: str | Path | None = None,
    on_layer: Callable[[str, torch.Tensor, Quantized], None] | None = None,
) -> dict[str, Quantized]:
    """GPTQ for every linear map in a transformer's layers; changes ``model`` in place.

    Embeddings, norms and the head are left alone. Afterwards the model computes with
    the rounded weights, still stored in its own type; ``packed.pack_model`` makes it
    small. A layer at a time is moved to the device that the calibration text is on, so
    a GPU needs room for one layer and its activations.

    Args:
        model: any transformer whose layers stand in an ``nn.ModuleList``.
        calibration: token ids (sequences, tokens), on the device to compute on.
        folder: finished layers are kept there, and removed when all is done. A run
            that was interrupted (the model is then as it was before) goes on from them.
        on_layer: called with name, weight as it was, and result of every linear map
            that is quantized now (not of those that an earlier run finished).

    Returns:
        The name of every linear map -> its weights in whole numbers.

    Raises:
        QuantizationError: too little calibration text, too little memory for it, no
            such layers or layers that are called with different masks or positions,
            weights that can't be quantized, a folder of another run.
    """
    _, layers = find_layers(model)
    names = {id(m): n for n, m in model.named_modules() if type(m) is nn.Linear}
    for layer in layers:
        for linear in linears(layer):
            require_matrix(linear.weight, scheme, names[id(linear)])
    _require_enough(calibration, layers)
    kept = resume.Kept(folder, _run_id(model, calibration, scheme) if folder else "")
    model.eval()
    device, done = calibration.device, {}
    with torch.no_grad(), _restored_unless_finished(layers):
        flow.require_alike(model, layers, calibration)
        arrived = flow.inputs_of_first(model, layers[0], calibration)
        _require_memory(layers[0], arrived, calibration)
        for i, layer in enumerate(bar(layers, "GPTQ", unit="layer")):
            home = next(iter([p.device for p in layer.parameters()]), device)
            layer.to(device)  # back home also when interrupted
            earlier = kept.read(i, device)
            if earlier is None:
                shared = _who_shares_inputs(layer, arrived, names)
                found, hooks = {}, []
                for group in shared:
                    hook = _quantize_when_called(group, names, scheme, found, on_layer)
                    hooks.append(group[0].register_forward_pre_hook(hook))
                try:
                    arrived.hidden = flow.call(layer, arrived)
                finally:
                    for hook in hooks:
                        hook.remove()
                kept.write(i, found)
            else:
                found = earlier
                for linear in linears(layer):
                    _put(linear, found[names[id(linear)]])
                arrived.hidden = flow.call(layer, arrived)
            layer.to(home)
            done |= {name: matrix.to(home) for name, matrix in found.items()}
    kept.clear()
    return done


@contextmanager
def _restored_unless_finished(layers: nn.ModuleList) -> Iterator[None]:
    """Put weights and devices back if the block is interrupted or fails.

    Keeps a copy of the maps' weights in main memory meanwhile.
    """
    homes = [[(p, p.device) for p in layer.parameters()] for layer in layers]
    before = [(linear, linear.weight.detach().to("cpu", copy=True))
              for linear in linears(layers)]  # fmt: skip
    try:
        yield
    except BaseException:
        for linear, weight in before:
            linear.weight.data.copy_(weight)
        for layer, places in zip(layers, homes, strict=True):
            if places:
                layer.to(places[0][1])
        raise


def round_model(model: nn.Module, scheme: Scheme) -> dict[str, Quantized]:
    """The same maps rounded to nearest, without calibration; changes ``model``."""
    _, layers = find_layers(model)
    done = {}
    for name, linear in named_linears(model, layers):
        require_matrix(linear.weight, scheme, name)
        done[name] = round_to_nearest(linear.weight, scheme)
        _put(linear, done[name])
    return done


def put(model: nn.Module, matrices: dict[str, Quantized]) -> nn.Module:
    """Write quantized maps, by name, into a model that holds plain ones; in place."""
    for name, matrix in matrices.items():
        _put(model.get_submodule(name), matrix)
    return model


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and list of a transformer's layers: the ModuleList that holds most.

    Raises:
        QuantizationError: there is none with linear maps in it.
    """
    lists = [
        (sum(p.numel() for p in m.parameters()), n, m)
        for n, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and any(True for _ in linears(m))
    ]
    if not lists:
        raise QuantizationError(
            f"No list of layers with linear maps in a {type(model).__name__}: "
            "is it a transformer, and not quantized already?"
        )
    _, name, layers = max(lists, key=lambda found: found[0])
    return name, layers


def linears(module: nn.Module) -> Iterator[nn.Linear]:
    """The plain linear maps in a module; those of other libraries are not touched."""
    return (m for m in module.modules() if type(m) is nn.Linear)


def named_linears(
    model: nn.Module, layers: nn.ModuleList
) -> Iterator[tuple[str, nn.Linear]]:
    """Those of the layers, with their names in the model."""
    inside = {id(linear) for linear in linears(layers)}
    return ((n, m) for n, m in model.named_modules() if id(m) in inside)


def _who_shares_inputs(layer, arrived: flow.Arrived, names) -> list[list[nn.Linear]]:
    """Linear maps that are called with the very same tensor, in the order of calls."""
    seen: dict[int, list[nn.Linear]] = {}
    alive = []  # a tensor that is gone may leave its identity to another

    def note(linear, arguments):
        alive.append(arguments[0])
        seen.setdefault(id(arguments[0]), []).append(linear)

    hooks = [m.register_forward_pre_hook(note) for m in linears(layer)]
    try:
        flow.call(layer, arrived, rows=1)
    finally:
        for hook in hooks:
            hook.remove()
    called = [linear for group in seen.values() for linear in group]
    unused = {id(linear) for linear in linears(layer)} - set(map(id, called))
    if len(called) != len(set(map(id, called))) or unused:
        first = next((names[i] for i in unused), names[id(called[0])])
        raise QuantizationError(
            f"Every linear map of a layer must be used once a pass; {first} isn't, or "
            "another is used twice. Such layers can't be calibrated here."
        )
    return list(seen.values())


def _quantize_when_called(group: list[nn.Linear], names, scheme, found, on_layer):
    """A hook that quantizes maps with the same inputs before the first one runs."""

    def hook(_, arguments):
        h = hessian(arguments[0])
        stacked = torch.cat([linear.weight.detach().float() for linear in group])
        whole, start = gptq(stacked, h, scheme), 0  # rows don't influence each other
        for linear in group:
            matrix = whole.rows(start, start + linear.out_features)
            start += linear.out_features
            if on_layer:
                on_layer(names[id(linear)], linear.weight.detach(), matrix)
            _put(linear, matrix)
            found[names[id(linear)]] = matrix

    return hook


def _put(linear: nn.Linear, matrix: Quantized) -> None:
    linear.weight.data.copy_(matrix.dequantize())


def _require_enough(calibration: torch.Tensor, layers: nn.ModuleList) -> None:
    if calibration.ndim != 2 or calibration.is_floating_point():
        raise QuantizationError(
            f"Calibration must be token ids (sequences, tokens), got "
            f"{tuple(calibration.shape)} of {calibration.dtype}."
        )
    widest = max(linear.in_features for linear in linears(layers))
    if not calibration.numel():
        raise QuantizationError("There is no calibration text.")
    if calibration.numel() < _ENOUGH * widest:
        raise QuantizationError(
            f"{calibration.numel()} calibration tokens for layers with {widest} "
            f"inputs: give at least {_ENOUGH * widest}, else the Hessian says little."
        )


def _require_memory(layer: nn.Module, arrived: flow.Arrived, calibration) -> None:
    """Predict what the widest moment of a layer needs, before it happens."""
    needed = activation_bytes(layer, arrived.hidden, calibration.shape[1])
    if calibration.is_cuda:
        free, _ = torch.cuda.mem_get_info(calibration.device)
        free += torch.cuda.memory_reserved(calibration.device)  # kept by torch, unused:
        free -= torch.cuda.memory_allocated(calibration.device)
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise QuantizationError(
            f"Calibrating on {calibration.numel():,} tokens would need about "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Use fewer or "
            "shorter calibration sequences."
        )


def activation_bytes(layer: nn.Module, hidden: torch.Tensor, tokens: int) -> int:
    """Bytes that one layer's pass over all sequences needs: an upper estimate.

    Every linear map's output, the attention of each head over ``tokens``, the hidden
    states before and after, and three matrices of the widest Hessian.
    """
    rows = hidden.numel() // hidden.shape[-1]
    outputs = sum(linear.out_features for linear in linears(layer))
    heads = getattr(getattr(layer, "self_attn", None), "config", None)
    heads = getattr(heads, "num_attention_heads", hidden.shape[-1] // 64)
    widest = max((linear.in_features for linear in linears(layer)), default=0)
    activations = rows * (outputs + 4 * hidden.shape[-1] + 2 * heads * tokens)
    return activations * hidden.element_size() + 4 * (4 * widest**2 + rows * widest)


def _run_id(model: nn.Module, calibration: torch.Tensor, scheme: Scheme) -> str:
    """What two runs must share for one to go on from the other's layers."""
    digest = hashlib.sha256(f"{scheme}{scheme.damping}".encode())
    digest.update(calibration.cpu().numpy().tobytes())
    for name, p in model.named_parameters():
        digest.update(f"{name}{tuple(p.shape)}{p.dtype}".encode())
        digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
