"""Layers of a network by name: found, and replaced."""

import copy
from collections import Counter
from collections.abc import Mapping

from torch import nn

from .errors import MicrobudgetError


def named_linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The plain linear layers of a model by name; not those of other libraries.

    Left out, too, is a layer whose weight another module shares (a tied embedding): a
    factorized or quantized weight could not be shared.

    Raises:
        MicrobudgetError: there are none.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and uses[id(module.weight)] == 1
    }
    if not found:
        raise MicrobudgetError(
            "This model has no plain linear layer of its own (layers that are "
            "quantized, factorized or tied to an embedding don't count)."
        )
    return found


def names_of(model: nn.Module, module: nn.Module) -> list[str]:
    """All names under which a model uses this very module."""
    return [n for n, m in model.named_modules(remove_duplicate=False) if m is module]


def is_shared(model: nn.Module, module: nn.Module) -> bool:
    """Whether the module is used under two names, or its weight by another module."""
    weight = module._parameters.get("weight")
    users = {
        id(m)
        for m in model.modules()
        if weight is not None and m._parameters.get("weight") is weight
    }
    return len(users) > 1 or len(names_of(model, module)) > 1


def of_its_own(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module, or a copy of it where it or its weight is used elsewhere as well.

    What changes the copy's weight leaves the other users as they are: a tied head is
    then tied no more, which the model's configuration is told.
    """
    if not is_shared(model, module):
        return module
    config = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        table = model.get_input_embeddings()._parameters.get("weight")
        if module._parameters.get("weight") is table:
            config.tie_word_embeddings = False
    return copy.deepcopy(module)


def replace_layer(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of the one called ``name``.

    Raises:
        MicrobudgetError: ``name`` is the model itself.
    """
    if not name:
        raise MicrobudgetError(
            "The model is the layer itself: put it into a Sequential."
        )
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def pick(found: Mapping, name: str):
    """``found[name]``, or a MicrobudgetError that lists what there is."""
    if name not in found:
        some = ", ".join(list(found)[:4])
        raise MicrobudgetError(f"There is no {name!r} here; there are {some} …")
    return found[name]
