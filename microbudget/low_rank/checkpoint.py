"""Factorized models on disk: weights in one safetensors file, ranks in its card."""

import json
import os
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..core.errors import MicrobudgetError
from ..core.files import atomic_path
from ..core.modules import replace_layer
from .conv import LowRankConv
from .factorize import LowRank, factored

_MAKE = {
    "linear": LowRank.of,
    "channel": partial(LowRankConv.of, kind="channel"),
    "spatial": partial(LowRankConv.of, kind="spatial"),
}


def save(model: nn.Module, path: str | os.PathLike, **card) -> Path:
    """Write all weights and buffers, and which maps have which rank.

    Args:
        card: notes of your own (text, numbers, lists) that ``load`` gives back.

    Raises:
        MicrobudgetError: nothing is factorized, a weight that isn't finite, a card that
            isn't plain, a full disk.
    """
    found = factored(model)
    if not found:
        raise MicrobudgetError("No map of this model is factorized: nothing to note.")
    state = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    bad = [n for n, t in state.items() if not torch.isfinite(t).all()]
    if bad:
        raise MicrobudgetError(f"{bad[0]} holds NaN or infinity.")
    maps = {
        name: {"kind": m.kind, "rank": m.rank, "bias": m[1].bias is not None}
        for name, m in found.items()
    }
    owner: dict[int, str] = {}  # a shared tensor is written once
    shared = {}
    for name, tensor in model.state_dict().items():
        first = owner.setdefault(
            tensor.data_ptr() if tensor.numel() else id(name), name
        )
        if first != name and state[first].shape == state[name].shape:
            shared[name] = first
    for name in shared:
        del state[name]
    try:
        notes = json.dumps({"maps": maps, "shared": shared, "card": card})
    except TypeError as error:
        raise MicrobudgetError(
            f"The card must be plain text or numbers: {error}."
        ) from error
    path = Path(path)
    with atomic_path(path, MicrobudgetError) as temporary:
        save_file(state, temporary, metadata={"microbudget": notes})
    return path


def load(model: nn.Module, path: str | os.PathLike) -> dict:
    """Give a whole model, in place, the shape and the weights that ``save`` wrote.

    Args:
        model: of the architecture as it was before it was factorized.

    Returns:
        The card.

    Raises:
        MicrobudgetError: no such file, not one of ours, of another architecture. The
            model is then as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise MicrobudgetError(f"There is no {path}: save a factorized model first.")
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["microbudget"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        maps, shared, card = notes["maps"], notes["shared"], notes["card"]
        kinds = [(one["kind"], int(one["rank"]), one["bias"]) for one in maps.values()]
        if any(rank < 1 for _, rank, _ in kinds):
            raise ValueError("a rank below 1")
        state |= {name: state[first] for name, first in shared.items()}
    except Exception as error:  # safetensors raises errors of its own
        raise MicrobudgetError(
            f"{path} is not a file of a factorized model "
            f"({type(error).__name__}: {error})."
        ) from error
    modules, new = dict(model.named_modules()), {}
    for name, (kind, rank, bias) in zip(maps, kinds, strict=True):
        module = modules.get(name)
        wanted = nn.Linear if kind == "linear" else nn.Conv2d
        if type(module) is not wanted or kind not in _MAKE:
            raise MicrobudgetError(
                f"{path.name} has a factorized {kind} map {name!r}, this model "
                f"{'none' if module is None else 'a ' + type(module).__name__}: build "
                "the architecture that was factorized."
            )
        new[name] = _empty(module, kind, rank, bias)
    expected = _shapes(model, new)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wrong := {n for n, _ in expected.items() ^ found.items()}:
        raise MicrobudgetError(f"{path.name} doesn't fit this model: {min(wrong)}.")
    for name, module in new.items():
        replace_layer(model, name, module)
    model.load_state_dict(state)
    return card


def _empty(module: nn.Module, kind: str, rank: int, bias: bool) -> nn.Module:
    w = module.weight.detach()
    if kind == "spatial":
        out, into = w.shape[0] * w.shape[3], w.shape[1] * w.shape[2]
    else:
        out, into = len(w), w[0].numel()
    zeros = [w.new_zeros(rank, into), w.new_zeros(out, rank)]
    return _MAKE[kind](module, *zeros, w.new_zeros(len(w)) if bias else None)


def _shapes(model: nn.Module, new: dict[str, nn.Module]) -> dict[str, tuple]:
    """Of the state dictionary that the model will have with ``new`` in place."""
    gone = tuple(f"{name}." for name in new)
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not key.startswith(gone)
    }
    for name, module in new.items():
        own = module.state_dict()
        shapes |= {f"{name}.{key}": tuple(tensor.shape) for key, tensor in own.items()}
    return shapes
