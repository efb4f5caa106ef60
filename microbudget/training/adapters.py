"""Bottleneck adapters: small layers put between frozen ones, stacked by name.

Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP (arXiv:1902.00751),
figure 2; stacks as in Pfeiffer et al. 2020, MAD-X (arXiv:2005.00052).
"""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..core.modules import replace_layer

# After attention and after the feed-forward, as Houlsby et al. place them: what these
# modules give is next added to the layer's input.
SITES = {
    "bert": r"attention\.output\.dropout|layer\.\d+\.output\.dropout",
    "roberta": r"attention\.output\.dropout|layer\.\d+\.output\.dropout",
    "llama": r"self_attn\.o_proj|mlp\.down_proj",
}


class Bottleneck(nn.Module):
    """h + up(gelu(down(h))): d -> width -> d, exactly the identity at the start."""

    def __init__(self, d: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(d, width), nn.Linear(width, d)
        nn.init.normal_(self.down.weight, std=1e-2)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.down(h.to(self.down.weight.dtype)))
        return h + self.up(inner).to(h.dtype)


class Adapted(nn.Module):
    """A module whose output goes through the active adapters, one after another.

    Attributes:
        active: names in ``adapters``, in the order they are applied.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.adapters = inner, nn.ModuleDict()
        self.active: list[str] = []

    def forward(self, *arguments, **options) -> torch.Tensor:
        h = self.inner(*arguments, **options)
        for name in self.active:
            h = self.adapters[name](h)
        return h


def add(model: nn.Module, name: str, width: int, sites: str = "") -> None:
    """Put an adapter called ``name`` at every site, active, alone.

    Args:
        model: a BERT, RoBERTa or Llama, or any module that holds one.
        width: of the bottleneck.
        sites: a regular expression for names of modules that give (…, d);
            default: ``SITES`` of the model's type.

    Raises:
        TrainingError: no such sites, a width below 1, a name taken or with a dot.
    """
    if width < 1:
        raise TrainingError(f"width={width}: a bottleneck needs at least 1.")
    if not name or "." in name:
        raise TrainingError(f"{name!r} can't be an adapter's name: no dots, not empty.")
    if name in names(model):
        raise TrainingError(f"There is an adapter {name!r} already: remove it first.")
    config = config_of(model)
    sites = sites or SITES.get(config.model_type, "")
    modules = [(n, m) for n, m in model.named_modules() if not isinstance(m, Adapted)]
    found = [n for n, _ in modules if sites and re.search(f"({sites})$", n)]
    if not found and not list(_adapted(model)):
        raise TrainingError(
            f"No place for adapters in a {config.model_type}: give sites=, a regular "
            "expression for the names of modules (see model.named_modules())."
        )
    device = next(model.parameters()).device
    for path in found:  # not yet wrapped: a wrapped module's name ends in ".inner"
        replace_layer(model, path, Adapted(model.get_submodule(path)))
    for wrapped in _adapted(model):
        wrapped.adapters[name] = Bottleneck(config.hidden_size, width).to(device)
    activate(model, [name])


def activate(model: nn.Module, stack: Sequence[str]) -> None:
    """Send every site's output through these adapters, in this order (none: plain).

    Raises:
        TrainingError: an adapter that isn't there.
    """
    stack = [stack] if isinstance(stack, str) else list(stack)
    if missing := [name for name in stack if name not in names(model)]:
        raise TrainingError(
            f"There is no adapter {missing[0]!r}; there are {sorted(names(model))}."
        )
    for wrapped in _adapted(model):
        wrapped.active = stack.copy()


def active(model: nn.Module) -> list[str]:
    """The stack that is in use."""
    return next((list(wrapped.active) for wrapped in _adapted(model)), [])


def names(model: nn.Module) -> set[str]:
    """The adapters that a model holds."""
    return {name for wrapped in _adapted(model) for name in wrapped.adapters}


def remove(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter out; without a name all, and the original modules are back.

    Raises:
        TrainingError: an adapter that isn't there.
    """
    if name and name not in names(model):
        raise TrainingError(
            f"There is no adapter {name!r}; there are {sorted(names(model))}."
        )
    for gone in [name] if name else names(model):
        getattr(model, "parts", {}).pop(gone, None)
    for path, module in list(model.named_modules()):
        if not isinstance(module, Adapted):
            continue
        for gone in [name] if name else list(module.adapters):
            if gone in module.adapters:
                del module.adapters[gone]
        module.active = [n for n in module.active if n in module.adapters]
        if not module.adapters:
            replace_layer(model, path, module.inner)


def _adapted(model: nn.Module) -> Iterator[Adapted]:
    return (m for m in model.modules() if isinstance(m, Adapted))


def config_of(model: nn.Module):
    """The transformers config of a model, or of the one that it holds."""
    for module in model.modules():
        if hasattr(module, "config"):
            return module.config
    raise TrainingError(
        "This model holds no transformers model, whose config says where things are."
    )
