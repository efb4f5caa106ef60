"""Which weights may move: ways to prepare a model for fine-tuning.

Each is one call that prepares a model in place: ``full``, ``top_layers``,
``head_only``, ``bitfit``, ``ia3``, ``bottlenecks``, ``lora``; QLoRA is ``lora`` on a
model whose weights are stored in four bits. The active head (of a module called
``heads``) always learns. LoRA and (IA)³ are peft's. No data set is known here.
"""

import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..core.errors import TrainingError
from ..training import adapters
from ..training.linears import linears_of, targets_of
from ..training.parts import (
    activate,
    active_head,
    is_active_head,
    is_four_bit,
    is_head,
    merge,
    note,
    require_room,
    save,
)

__all__ = ["METHODS", "activate", "bitfit", "bottlenecks", "full", "head_only", "ia3",
           "is_four_bit", "load", "lora", "merge", "save", "top_layers"]  # fmt: skip


def _method(prepare: Callable) -> Callable:
    """Freeze all but the active head, prepare, and note what was done.

    When preparing fails the model is as it was.
    """
    signature = inspect.signature(prepare)

    @wraps(prepare)
    def call(model: nn.Module, *arguments, **options) -> nn.Module:
        bound = signature.bind(model, *arguments, **options)
        bound.apply_defaults()
        options = dict(list(bound.arguments.items())[1:])
        name, method = options.get("name", "task"), prepare.__name__
        if not name or "." in name:
            raise TrainingError(
                f"name={name!r}: a name must have no dots, and a letter."
            )
        require_room(model, method, name)
        before = [(p, p.requires_grad) for p in model.parameters()]
        try:
            for path, parameter in model.named_parameters():
                parameter.requires_grad_(is_active_head(model, path))
            prepare(**bound.arguments)
        except Exception:
            for parameter, learnt in before:
                parameter.requires_grad_(learnt)
            raise
        note(model, name, method, options, active_head(model))
        return model

    return call


@_method
def full(model: nn.Module) -> None:
    """All weights learn."""
    _require_whole_weights(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_head(name) or is_active_head(model, name))


@_method
def head_only(model: nn.Module) -> None:
    """Nothing but the head learns."""


@_method
def top_layers(model: nn.Module, layers: int = 2) -> None:
    """The last ``layers`` layers learn."""
    _require_whole_weights(model)
    stack = _layers(model)
    if not 1 <= layers <= len(stack):
        raise TrainingError(f"layers={layers}: this model has {len(stack)}.")
    for layer in stack[-layers:]:
        layer.requires_grad_(True)


@_method
def bitfit(model: nn.Module) -> None:
    """The bias vectors learn (Ben Zaken et al. 2021, BitFit, arXiv:2106.10199)."""
    named = [(n, p) for n, p in model.named_parameters() if not is_head(n)]
    biases = [p for n, p in named if n.endswith(".bias")]
    if not biases:
        raise TrainingError("This model has no biases: BitFit has nothing to train.")
    for bias in biases:
        bias.requires_grad_(True)


@_method
def ia3(model: nn.Module, name: str = "task") -> None:
    """Learned scales of keys, values and the feed-forward's inner activations.

    Liu et al. 2022, (IA)³, arXiv:2205.05638, section 3.3; peft's implementation.
    """
    import peft
    import peft.functional

    linears = linears_of(model)
    inner = linears["f"][-1]
    targets = f".*({'|'.join([*linears['k'], *linears['v'], inner])})"
    config = peft.IA3Config(target_modules=targets, feedforward_modules=f".*{inner}")
    _inject(config, model, name)


@_method
def bottlenecks(model: nn.Module, width: int = 32, name: str = "task") -> None:
    """Houlsby's adapters, see ``adapters.add``; the layer norms stay frozen.

    Houlsby et al. train the norms too; frozen, adapters can be switched and stacked
    (as Pfeiffer et al. 2020 do).
    """
    adapters.add(model, name, width)
    for path, parameter in model.named_parameters():
        if f".adapters.{name}." in path:
            parameter.requires_grad_(True)


@_method
def lora(
    model: nn.Module,
    rank: int = 8,
    targets: str | Sequence[str] = "qv",
    alpha: float | None = None,
    name: str = "task",
) -> None:
    """Low-rank updates W + (α/r)·BA of linear maps.

    Hu et al. 2021, LoRA, arXiv:2106.09685, equation 3; peft's implementation. On a
    model in four bits this is QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

    Args:
        rank: r. A is (r, in), drawn at random; B is (out, r), zero at the start.
        targets: letters: q, k, v, o (attention), f (feed-forward), such as ``"qkvof"``;
            or endings of modules' names.
        alpha: default 16·√(r/8): 16 at rank 8, and about the same size of update at
            every rank (Kalajdzievski 2023, rsLoRA, arXiv:2312.03732).

    Raises:
        TrainingError: a rank below 1, or a target that isn't there.
    """
    import peft
    import peft.functional

    if not isinstance(rank, int) or rank < 1:
        raise TrainingError(f"rank={rank}: a low-rank update needs at least rank 1.")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise TrainingError(f"alpha={alpha}: the update's scale must be positive.")
    config = peft.LoraConfig(
        r=rank, lora_alpha=16 * (rank / 8) ** 0.5 if alpha is None else alpha,
        target_modules=rf"(.*\.)?({'|'.join(targets_of(model, targets))})",
        lora_dropout=0.0,
    )  # fmt: skip
    _inject(config, model, name)


# the methods of the course's table, by name; QLoRA is lora on a model in four bits
METHODS: dict[str, Callable] = {
    method.__name__: method
    for method in (full, top_layers, head_only, bitfit, ia3, bottlenecks, lora)
}


def load(model: nn.Module, path: str | os.PathLike) -> dict:
    """Put what ``save`` wrote on its base: the part and its head, both active.

    Args:
        model: the base as it was, or one that holds parts of the same method by other
            names (LoRA, (IA)³ and bottlenecks only).

    Returns:
        The card.

    Raises:
        TrainingError: no such file, not one of ours, another base, another method, a
            name or a head that is taken.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(f"There is no {path}: save a trained model first.")
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["microbudget"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        part, name, card = notes["part"], notes["name"], notes["card"]
        prepare, options = METHODS[part["method"]], dict(part["options"])
        base, heads = notes["base"], dict(notes["heads"])
    except Exception as error:  # safetensors raises errors of its own
        raise TrainingError(
            f"{path} is not a checkpoint of finetuning.save "
            f"({type(error).__name__}: {error})."
        ) from error
    here = getattr(model, "base_id", "")
    if base.rpartition(":")[2] != here.rpartition(":")[2]:
        raise TrainingError(
            f"{path.name} was trained on {base or 'another model'}, this is "
            f"{here or 'something else'}: an adapter fits its own base only."
        )
    for other in getattr(model, "parts", {}).values():
        if other["method"] != part["method"]:
            raise TrainingError(
                f"{path.name} holds {part['method']}, but this model was prepared for "
                f"{other['method']}. Load it into a fresh copy of the base."
            )
    require_room(model, part["method"], name)
    for head, classes in heads.items():
        if head in model.heads and model.heads[head].out_features != classes:
            raise TrainingError(
                f"{path.name} has a head {head!r} of {classes} classes, this model one "
                f"of {model.heads[head].out_features}."
            )
        used = [n for n, p in getattr(model, "parts", {}).items() if p["head"] == head]
        if used:
            raise TrainingError(
                f"The head {head!r} belongs to {used[0]!r} here. Train each task with "
                "a head of its own: encoder.classifier(…, task=…)."
            )
    for head, classes in heads.items():
        if head not in model.heads:
            model.add_head(head, classes)
        model.task = head
    prepare(model, **options)
    model.parts[name] = part
    own = dict(model.named_parameters())
    wrong = [n for n, t in state.items() if n not in own or own[n].shape != t.shape]
    if wrong:
        raise TrainingError(f"{path.name} doesn't fit this model: {wrong[0]}.")
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)
    activate(model, name)
    model.eval()
    return card


def _inject(config, model: nn.Module, name: str) -> None:
    import peft
    import peft.functional

    head = [p for n, p in model.named_parameters() if is_active_head(model, n)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # on purpose
        peft.functional.inject_adapter_in_model(config, model, adapter_name=name)
    peft.functional.cast_adapter_dtype(model, name)  # learn in float32, always
    peft.functional.set_adapter(model, name)
    for parameter in head:
        parameter.requires_grad_(True)


def _require_whole_weights(model: nn.Module) -> None:
    if is_four_bit(model):
        raise TrainingError("Weights stored in four bits can't be trained: use lora.")


def _layers(model: nn.Module) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not found:
        raise TrainingError("This model has no list of layers.")
    return max(found, key=len)
