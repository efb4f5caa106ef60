"""Layers of a network by name: found, and replaced."""

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
