"""The same idea in convolutions: one k × k convolution as two cheaper ones.

A convolution is a linear layer from a patch (in·k·k numbers) to a pixel (out numbers):

- *channel*: a k × k convolution with r filters, then a 1 × 1 one (Zhang et al. 2016,
  arXiv:1505.06798, section 3.1). A 1 × 1 convolution is a linear layer of channels, and
  becomes two of them.
- *spatial*: a k × 1 convolution with r filters, then a 1 × k one (Jaderberg et al.
  2014, arXiv:1405.3866, scheme 2).

A depthwise convolution has one filter of k·k numbers a channel: from its patch to its
pixel it has rank 1 already, and there is nothing to factorize.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from ..core.errors import MicrobudgetError
from ..core.modules import is_shared, pick
from ..evaluation.moments import Moments
from .data_aware import DAMPING, require_size
from .decomposition import Decomposition, finite_float64, svd


def named_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The plain convolutions without groups, by name: those that can be factorized.

    Raises:
        MicrobudgetError: there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d
        and module.groups == 1
        and not is_shared(model, module)
    }
    if not found:
        raise MicrobudgetError(
            "This model has no plain convolution without groups. Depthwise ones have "
            "rank 1 already: there is nothing to factorize."
        )
    return found


def convolution_svd(
    conv: nn.Conv2d, kind: str = "channel", outputs: Moments | None = None
) -> Decomposition:
    """Directions of a convolution, by its weights or, with moments, by its outputs.

    Args:
        kind: ``"channel"`` or ``"spatial"``.
        outputs: moments of the outputs (``collect_outputs``), for ``"channel"``:
            directions are then the outputs' principal components about their mean
            (Zhang et al. 2016), and the bias keeps the mean.

    Raises:
        MicrobudgetError: groups, NaN. DataError: moments of another convolution.
    """
    assert kind in ("channel", "spatial")
    assert outputs is None or kind == "channel"
    if conv.groups > 1:
        raise MicrobudgetError(
            f"This convolution has {conv.groups} groups. A depthwise one has rank 1 "
            "already; others would have to be factorized group by group."
        )
    w = finite_float64(conv.weight)  # (out, in, kh, kw)
    if kind == "spatial":
        matrix = w.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)  # (out·kw, in·kh)
    else:
        matrix = w.flatten(1)  # (out, in·kh·kw)
    if outputs is None:
        return replace(svd(matrix), kind=kind)
    require_size(outputs, len(matrix), "outputs")
    # Filters that stayed silent have no covariance: a little of W Wᵀ, in the same unit,
    # keeps them last instead of losing them.
    own = matrix @ matrix.T  # (out, out)
    covariance = outputs.matrix(centred=True).to(own)
    level = DAMPING * covariance.trace() / own.trace().clamp(min=1e-300)
    variances, u = torch.linalg.eigh(covariance + level * own)
    n = min(matrix.shape)  # eigenvalues come rising
    u, values = u.flip(1)[:, :n], variances.flip(0)[:n].clamp(min=0).sqrt()
    mean = outputs.mean.to(own)
    if conv.bias is not None:
        mean = mean - conv.bias.detach().double()
    return Decomposition(u.T @ matrix, u, values, kind, means=(mean, u.T @ mean))


def decompose_convolutions(
    model: nn.Module,
    kind: str = "channel",
    outputs: Mapping[str, Moments] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Decomposition]:
    """``convolution_svd`` by name; default: of all of ``named_convolutions``."""
    convs = named_convolutions(model)
    return {
        name: convolution_svd(pick(convs, name), kind, outputs and pick(outputs, name))
        for name in names or convs
    }


def collect_outputs(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    names: Sequence[str] | None = None,
) -> dict[str, Moments]:
    """Run ``model(batch)`` over batches and sum up its convolutions' outputs, by name.

    Raises:
        MicrobudgetError: a name that isn't such a convolution.
    """
    convs = named_convolutions(model)
    chosen = {pick(convs, name): name for name in names or convs}
    moments = {
        name: Moments.zeros(conv.out_channels, conv.weight.device)
        for conv, name in chosen.items()
    }

    def add(conv: nn.Conv2d, _, y: torch.Tensor) -> None:
        # y: (batch, out, height, width); every pixel is a sample
        moments[chosen[conv]].add(y.movedim(1, -1).flatten(0, -2))

    with ExitStack() as hooks, torch.no_grad():  # leaving it removes the hooks
        for conv in chosen:
            hooks.enter_context(conv.register_forward_hook(add))
        for batch in batches:
            model(batch)
    return moments
