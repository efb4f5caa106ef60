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

# After attention and after the feed-forward, as Houlsby et al. place them: the output
# of these modules is next added to the layer's input.
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

    def forward(self, h: torch.Tensor) -> torch.Tensor:  # (…, d) -> (…, d)
        inner = F.gelu(self.down(h.to(self.down.weight.dtype)))  # (…, width)
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


def insert_(model: nn.Module, name: str, width: int) -> None:
    """Put an adapter called ``name`` at every site, active, alone.

    Args:
        model: a BERT, RoBERTa or Llama, or any module that holds one.
        width: of the bottleneck.

    Raises:
        TrainingError: a model of another kind, or a width below 1.
    """
    config = next((m.config for m in model.modules() if hasattr(m, "config")), None)
    kind = getattr(config, "model_type", type(model).__name__)
    if width < 1 or kind not in SITES:
        raise TrainingError(
            "A bottleneck adapter needs a width of at least 1 and a model of the kinds "
            f"{', '.join(SITES)}; this is width {width} and {kind}."
        )
    device = next(model.parameters()).device
    for path, module in list(model.named_modules()):
        # a module that is wrapped already has a path that ends in ".inner"
        if re.search(f"({SITES[kind]})$", path) and not isinstance(module, Adapted):
            replace_layer(model, path, Adapted(module))
    for site in _sites(model):
        site.adapters[name] = Bottleneck(config.hidden_size, width).to(device)
    activate_(model, [name])


def activate_(model: nn.Module, stack: Sequence[str]) -> None:
    """Send every site's output through these adapters, in this order (none: plain)."""
    for site in _sites(model):
        site.active = list(stack)


def _sites(model: nn.Module) -> Iterator[Adapted]:
    return (m for m in model.modules() if isinstance(m, Adapted))
