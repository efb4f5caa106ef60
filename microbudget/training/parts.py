"""The part of a model that a method trains: noted, switched, merged, saved.

A model that was prepared carries ``model.parts``: name -> what the method did, which
parameters are its own, and which head belongs to it.
"""

import json
import os
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..core.errors import TrainingError
from ..core.files import atomic_path
from ..core.modules import replace_layer
from ..models import bitsandbytes
from . import adapters

HEADS = "heads"
# methods whose weights lie beside the base's, so that a model can hold several by name
BESIDE = ("ia3", "bottlenecks", "lora")


def note(model: nn.Module, name: str, method: str, options: dict, head: str) -> None:
    """Remember what has just been prepared: the parameters that now may learn."""
    paths = [path for path, p in model.named_parameters() if p.requires_grad]
    known = {**getattr(model, "parts", {})}
    known[name] = {"method": method, "options": options, "head": head, "paths": paths}
    model.parts, model.part = known, name


def require_room(model: nn.Module, method: str, name: str) -> None:
    """Raise a TrainingError if the model can't take this method's part as well."""
    known = getattr(model, "parts", {})
    for other, part in known.items():
        if part["method"] != method or method not in BESIDE:
            raise TrainingError(
                f"This model was prepared for {part['method']} already, and {method} "
                "would mix with it: take a fresh copy of the base."
            )
        if other == name:
            raise TrainingError(
                f"This model holds a {method} called {name!r} already. Give the new "
                "one a name of its own (name=…), or take a fresh copy of the base."
            )


def activate(model: nn.Module, name: str) -> None:
    """Switch to a part by name, and to its head; only these may learn from now on.

    Raises:
        TrainingError: there is no such part, or its weights are the base's own.
    """
    known = getattr(model, "parts", {})
    if name not in known:
        raise TrainingError(f"There is nothing called {name!r}, only {sorted(known)}.")
    part = known[name]
    if part["method"] == "bottlenecks":
        adapters.activate(model, [name])
    elif part["method"] in BESIDE:
        import peft
        import peft.functional

        peft.functional.set_adapter(model, name)
    if part["head"]:
        model.task = part["head"]
    own = set(part["paths"])
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in own)
    model.part = name


def merge(model: nn.Module) -> nn.Module:
    """Add the LoRA or (IA)³ into the weights: no extra work is left, and no part.

    Raises:
        TrainingError: there is none or more than one, or the weights are in four bits.
    """
    layers = [(n, m) for n, m in model.named_modules() if is_peft(m)]
    if not layers:
        raise TrainingError("There is no LoRA or (IA)³ to merge.")
    if is_four_bit(model):
        raise TrainingError(
            "Merging into four bits would round the update away: load the model in "
            "full precision, then the adapter, then merge."
        )
    if len(known := getattr(model, "parts", {})) > 1:
        raise TrainingError(
            f"This model holds {sorted(known)}, and merging keeps one only: load that "
            "one into a fresh copy of the base."
        )
    for path, layer in layers:
        layer.merge()
        replace_layer(model, path, layer.get_base_layer())
    model.parts, model.part = {}, ""
    model.base_id = f"{getattr(model, 'base_id', '')} with a merged part"
    return model


def save(
    model: nn.Module, path: str | os.PathLike, name: str | None = None, **card
) -> Path:
    """Write a part, and nothing else of the model, as one safetensors file.

    Args:
        name: of the part; default: the active one.
        card: notes of your own (text, numbers, lists) that ``load`` gives back.

    Raises:
        TrainingError: no method has been applied, no such part, a weight that isn't
            finite, a card that isn't plain.
    """
    known = getattr(model, "parts", {})
    name = getattr(model, "part", "") if name is None else name
    if name not in known:
        raise TrainingError(
            f"Nothing to save: apply a method (lora, bitfit, …) first. Parts called "
            f"{sorted(known)} are there."
        )
    part, own = known[name], dict(model.named_parameters())
    state = {path: own[path].detach().cpu().contiguous() for path in part["paths"]}
    bad = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise TrainingError(f"{bad[0]} holds NaN or infinity: this run has diverged.")
    heads = (
        {part["head"]: model.heads[part["head"]].out_features} if part["head"] else {}
    )
    notes = {"name": name, "part": part, "heads": heads, "card": card,
             "base": getattr(model, "base_id", "")}  # fmt: skip
    try:
        metadata = {"microbudget": json.dumps(notes)}
    except TypeError as error:
        raise TrainingError(
            f"The card must be plain text or numbers: {error}."
        ) from error
    path = Path(path)
    with atomic_path(path, TrainingError) as temporary:
        save_file(state, temporary, metadata=metadata)
    return path


def is_head(path: str) -> bool:
    """Whether a parameter or module of this name belongs to a head."""
    return re.search(rf"(^|\.){HEADS}(\.|$)", path) is not None


def active_head(model: nn.Module) -> str:
    """The head that answers; empty for a model without heads."""
    return model.task if len(getattr(model, HEADS, {})) else ""


def is_active_head(model: nn.Module, path: str) -> bool:
    """Whether a parameter belongs to the head that answers."""
    head = active_head(model)
    return bool(head) and path.startswith(f"{HEADS}.{head}.")


def is_four_bit(model: nn.Module) -> bool:
    return bool(bitsandbytes.layers(model))


def is_peft(module: nn.Module) -> bool:
    import peft
    import peft.functional

    return isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
