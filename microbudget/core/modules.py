"""Layers of a network by name: found, and replaced."""

from collections.abc import Mapping

from torch import nn

from .errors import MicrobudgetError


def plain_linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The plain linear maps of a model by name; those of other libraries are left out.

    Left out, too, is a map whose weight another module shares (a tied embedding): two
    thin matrices could not be shared.

    Raises:
        MicrobudgetError: there are none.
    """
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and uses[id(module.weight)] == 1
    }
    if not found:
        raise MicrobudgetError(
            "This model holds no plain linear map of its own to factorize (maps that "
            "are quantized, tied to an embedding or factorized already don't count)."
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
        raise MicrobudgetError(f"There is nothing called {name!r}; there are {some} …")
    return found[name]
