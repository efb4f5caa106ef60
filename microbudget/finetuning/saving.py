"""What fine-tuning has trained, and nothing else of the model, as one small file."""

import copy
import os
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import peft
import torch
from torch import nn

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import TrainingError
from . import methods


def save(model: nn.Module, path: str | os.PathLike, **metadata) -> Path:
    """Write the parameters of what is active in a model as one safetensors file.

    Args:
        metadata: of your own: plain text, numbers, lists.

    Raises:
        TrainingError: no method has been applied.
        MicrobudgetError: a weight that isn't finite, metadata that JSON can't hold.
    """
    name = getattr(model, "active_name", "")
    if not name:
        raise TrainingError(
            "There is nothing to save: apply a method first (finetuning.apply_)."
        )
    one = methods.applied(model)[name]
    notes = {
        "name": name,
        "config": _to_dict(one.config),
        "head": one.head,
        "classes": model.heads[one.head].out_features if one.head else 0,
        "base_id": getattr(model, "base_id", ""),
    }
    tensors = {path: model.get_parameter(path) for path in one.parameters}
    return save_tensors(path, tensors, finetuning=notes, **metadata)


def load_(model: nn.Module, path: str | os.PathLike) -> dict:
    """Put what ``save`` wrote on its base: active, with its head, in eval mode.

    Args:
        model: the base as it was, or one to which the same method was applied by other
            names (LoRA, (IA)³ and bottleneck adapters only).

    Returns:
        The metadata that ``save`` was given.

    Raises:
        MicrobudgetError: no such file, damaged, or of another kind.
        TrainingError: another base, another method, a name or a head that is taken; the
            model is then as it was.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    notes = metadata.pop("finetuning", None)
    if notes is None:
        raise TrainingError(f"{path} wasn't written by finetuning.save.")
    config, name = _from_dict(notes["config"]), notes["name"]
    _require_its_base(model, notes, path)
    methods.require_room(model, config, name)
    if notes["head"]:
        _require_free_head(model, notes, path)
    # Which parameters the method adds is known only when it has been applied: it is
    # tried on a copy without weights, and torch's random state stays as it was.
    with torch.random.fork_rng():
        trial = _apply_(_without_weights(model), config, notes)
    names = methods.applied(trial)[name].parameters
    expected = {key: trial.get_parameter(key).shape for key in names}
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if wrong := sorted(dict(expected.items() ^ found.items())):
        raise TrainingError(f"{path.name} doesn't fit this model: {wrong[0]}.")
    _apply_(model, config, notes)
    with torch.no_grad():
        for key, tensor in tensors.items():
            model.get_parameter(key).copy_(tensor)
    model.eval()
    return metadata


def _apply_(model: nn.Module, config: methods.Config, notes: dict) -> nn.Module:
    head = notes["head"]
    if head:
        if head not in model.heads:
            model.add_head(head, notes["classes"])
        model.task = head
    return methods.apply_(model, config, notes["name"], with_head=bool(head))


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy that holds shapes instead of weights: it costs no memory."""
    memo = {}
    for parameter in model.parameters():
        copied = parameter
        # bitsandbytes' packed weights carry settings: the copy shares them, unchanged
        if not hasattr(parameter, "quant_state"):
            empty = parameter.detach().to("meta")
            copied = nn.Parameter(empty, parameter.requires_grad)
        memo[id(parameter)] = copied
    return copy.deepcopy(model, memo)


def _require_its_base(model: nn.Module, notes: dict, path: Path) -> None:
    base, here = notes["base_id"], getattr(model, "base_id", "")
    if base.rpartition(":")[2] != here.rpartition(":")[2]:  # the weights, not the name
        raise TrainingError(
            f"{path.name} was trained on {base or 'another model'}, this is "
            f"{here or 'something else'}: an adapter fits its own base only."
        )


def _require_free_head(model: nn.Module, notes: dict, path: Path) -> None:
    head, classes = notes["head"], notes["classes"]
    if head in model.heads and model.heads[head].out_features != classes:
        raise TrainingError(
            f"{path.name} has a head {head!r} of {classes} classes, this model one of "
            f"{model.heads[head].out_features}."
        )
    users = [n for n, one in methods.applied(model).items() if one.head == head]
    if users:
        raise TrainingError(
            f"The head {head!r} belongs to {users[0]!r} here. Train each task with a "
            "head of its own: encoder.classifier(…, task=…)."
        )


def _to_dict(config: methods.Config) -> dict:
    if not isinstance(config, peft.PeftConfig):
        return {"type": type(config).__name__, **asdict(config)}
    plain = config.to_dict().items()  # peft has sets, which JSON hasn't
    return {k: sorted(v) if isinstance(v, set) else v for k, v in plain}


def _from_dict(options: dict) -> methods.Config:
    if "type" not in options:
        return peft.get_peft_config(options)
    own = {kind.__name__: kind for kind in get_args(methods.Config)}
    return own[options.pop("type")](**options)
