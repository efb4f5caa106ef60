"""What fine-tuning has trained, and nothing else of the model, as one small file."""

import copy
import os
from dataclasses import asdict
from pathlib import Path

import peft
import torch
from torch import nn

from ..core.checkpoint import load_tensors, save_tensors
from ..core.errors import TrainingError
from . import methods


def save(
    model: nn.Module, path: str | os.PathLike, name: str | None = None, **metadata
) -> Path:
    """Write the parameters that a method trains as one safetensors file.

    Args:
        name: of what was applied; default: the active one.
        metadata: of your own: plain text, numbers, lists.

    Raises:
        TrainingError: no method has been applied, or none by that name.
        MicrobudgetError: a weight that isn't finite, metadata that JSON can't hold.
    """
    known = methods.applied(model)
    name = getattr(model, "active_name", "") if name is None else name
    if name not in known:
        raise TrainingError(
            f"There is nothing to save by the name {name!r}, only {sorted(known)}: "
            "apply a method first (finetuning.apply_)."
        )
    one, parameters = known[name], dict(model.named_parameters())
    notes = {
        "name": name,
        "config": _to_dict(one.config),
        "head": one.head,
        "classes": model.heads[one.head].out_features if one.head else 0,
        "base_id": getattr(model, "base_id", ""),
    }
    tensors = {path: parameters[path] for path in one.parameters}
    return save_tensors(path, tensors, finetuning=notes, **metadata)


def load_(model: nn.Module, path: str | os.PathLike) -> dict:
    """Put what ``save`` wrote on its base: active, with its head, in eval mode.

    The file is checked completely before the model is changed.

    Args:
        model: the base as it was, or one to which the same method was applied by other
            names (LoRA, (IA)³ and bottleneck adapters only).

    Returns:
        The metadata that ``save`` was given.

    Raises:
        MicrobudgetError: no such file, damaged, or of another kind.
        TrainingError: another base, another method, a name or a head that is taken.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    notes = metadata.pop("finetuning", None)
    if notes is None:
        raise TrainingError(f"{path} wasn't written by finetuning.save.")
    config = _from_dict(notes["config"])
    _require_its_base(model, notes, path)
    methods.require_room(model, config, notes["name"])
    _require_free_head(model, notes, path)
    # Which parameters the method adds is known only when it has been applied: it is
    # tried on a copy without weights, and torch's random state stays as it was.
    with torch.random.fork_rng():
        trial = _apply_(_without_weights(model), config, notes)
    expected = _shapes(trial, methods.applied(trial)[notes["name"]].parameters)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := dict(expected.items() ^ found.items()):
        raise TrainingError(f"{path.name} doesn't fit this model: {sorted(wrong)[0]}.")
    _apply_(model, config, notes)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    model.eval()
    return metadata


def _apply_(model: nn.Module, config: methods.Config, notes: dict) -> nn.Module:
    head = notes["head"]
    if head and head not in model.heads:
        model.add_head(head, notes["classes"])
    if head:
        model.task = head
    return methods.apply_(model, config, notes["name"], with_head=bool(head))


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy that holds shapes instead of weights: it costs no memory."""
    memo = {}
    for parameter in model.parameters():
        copied = parameter
        # bitsandbytes' packed weights carry settings: the copy shares them, unchanged
        if not hasattr(parameter, "quant_state"):
            copied = nn.Parameter(
                parameter.detach().to("meta"), parameter.requires_grad
            )
        memo[id(parameter)] = copied
    return copy.deepcopy(model, memo)


def _shapes(model: nn.Module, names) -> dict[str, torch.Size]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name].shape for name in names}


def _require_its_base(model: nn.Module, notes: dict, path: Path) -> None:
    base, here = notes["base_id"], getattr(model, "base_id", "")
    if base.rpartition(":")[2] != here.rpartition(":")[2]:  # the weights, not the name
        raise TrainingError(
            f"{path.name} was trained on {base or 'another model'}, this is "
            f"{here or 'something else'}: an adapter fits its own base only."
        )


def _require_free_head(model: nn.Module, notes: dict, path: Path) -> None:
    head, classes = notes["head"], notes["classes"]
    if not head or head not in model.heads:
        return
    if model.heads[head].out_features != classes:
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
    own = {kind.__name__: kind for kind in methods.OWN_CONFIGS}
    return own[options["type"]](**{k: v for k, v in options.items() if k != "type"})
