"""The same idea in convolutions: one k × k convolution as two cheaper ones.

A convolution is a linear map from a patch (in·k·k numbers) to a pixel (out numbers):

- *channel*: a k × k convolution with r filters, then a 1 × 1 one (Zhang et al. 2016,
  arXiv:1505.06798, section 3.1). A 1 × 1 convolution is a linear map of channels, and
  becomes two of them.
- *spatial*: a k × 1 convolution with r filters, then a 1 × k one (Jaderberg et al.
  2014, arXiv:1405.3866, scheme 2).

A depthwise convolution has one filter of k·k numbers a channel: as a map from its patch
to its pixel it has rank 1 already, and there is nothing to cut.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from ..core.errors import DataError, MicrobudgetError
from ..core.modules import pick
from ..evaluation.moments import Moments
from .data_aware import DAMPING
from .factorize import Decomposition, Factored, checked, filled

KINDS = ("channel", "spatial")


class LowRankConv(Factored):
    """Two convolutions in the place of one; ``kind`` says how it was cut."""

    def __init__(self, kind: str, first: nn.Conv2d, second: nn.Conv2d):
        super().__init__(first, second)
        self.kind = kind

    @classmethod
    def of(cls, conv: nn.Conv2d, down, up, bias, kind: str) -> "LowRankConv":
        """In place of ``conv``.

        Args:
            down: channel: (r, in·kh·kw); spatial: (r, in·kh).
            up: channel: (out, r); spatial: (out·kw, r).
            bias: (out,) or None.
        """
        rank, (kh, kw) = len(down), conv.kernel_size
        out, into = conv.out_channels, conv.in_channels
        mode, common = conv.padding_mode, {"device": "meta"}
        if kind == "channel":
            first = nn.Conv2d(
                into, rank, (kh, kw), conv.stride, conv.padding, conv.dilation,
                bias=False, padding_mode=mode, **common,
            )  # fmt: skip
            second = nn.Conv2d(rank, out, 1, bias=bias is not None, **common)
        else:
            pads = _padding(conv)
            first = nn.Conv2d(
                into, rank, (kh, 1), (conv.stride[0], 1), pads[0],
                (conv.dilation[0], 1), bias=False, padding_mode=mode, **common,
            )  # fmt: skip
            second = nn.Conv2d(
                rank, out, (1, kw), (1, conv.stride[1]), pads[1],
                (1, conv.dilation[1]), bias=bias is not None, padding_mode=mode,
                **common,
            )  # fmt: skip
            up = up.reshape(out, kw, rank).transpose(1, 2)  # (out, r, kw)
        new = cls(
            kind, *filled((first, down), (second, up), bias=bias, like=conv.weight)
        )
        return new.train(conv.training)

    @property
    def rank(self) -> int:
        return self[0].out_channels

    def merged(self) -> nn.Conv2d:
        """One convolution again, equal to the two."""
        first, second = self
        a, b = first.weight.detach().double(), second.weight.detach().double()
        if self.kind == "channel":
            weight = torch.einsum("rihw,or->oihw", a, b[:, :, 0, 0])
            stride, padding, dilation = first.stride, first.padding, first.dilation
        else:
            weight = torch.einsum("rih,orw->oihw", a[..., 0], b[:, :, 0])
            pair = first.padding, second.padding
            padding = pair[0] if isinstance(pair[0], str) else (pair[0][0], pair[1][1])
            stride = first.stride[0], second.stride[1]
            dilation = first.dilation[0], second.dilation[1]
        whole = nn.Conv2d(
            weight.shape[1], len(weight), weight.shape[2:], stride, padding, dilation,
            bias=second.bias is not None, padding_mode=first.padding_mode,
            device="meta",
        )  # fmt: skip
        (whole,) = filled((whole, weight), bias=second.bias, like=first.weight)
        return whole.train(self.training)


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The plain convolutions without groups, by name: those that can be factorized.

    Raises:
        MicrobudgetError: there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d and module.groups == 1
    }
    if not found:
        raise MicrobudgetError(
            "This model holds no plain convolution without groups. Depthwise ones have "
            "rank 1 already: there is nothing to cut."
        )
    return found


def svd(
    conv: nn.Conv2d, kind: str = "channel", outputs: Moments | None = None,
    *, damping: float = DAMPING,
) -> Decomposition:  # fmt: skip
    """Directions of a convolution, by their weights or, with moments, by its outputs.

    Args:
        kind: ``"channel"`` or ``"spatial"``.
        outputs: moments of the convolution's outputs (``collect_outputs``), for
            ``"channel"``: directions are then the outputs' principal components about
            their mean (Zhang et al. 2016), and the bias keeps the mean.
        damping: a share of ‖W‖²'s mean over outputs, so that filters that stayed silent
            are kept last and not lost.

    Raises:
        MicrobudgetError: groups, another kind, NaN. DataError: moments of another size.
    """
    if kind not in KINDS:
        raise MicrobudgetError(f"kind={kind!r}: use 'channel' or 'spatial'.")
    if conv.groups > 1:
        raise MicrobudgetError(
            f"This convolution has {conv.groups} groups: a depthwise one has rank 1 "
            "already, and others would have to be cut group by group."
        )
    w = conv.weight  # (out, in, kh, kw)
    make = partial(LowRankConv.of, kind=kind)
    if kind == "spatial":
        if outputs is not None:
            raise MicrobudgetError("Outputs weigh channels: use kind='channel'.")
        # rows (out, kw), columns (in, kh)
        matrix = w.permute(0, 3, 1, 2).reshape(-1, w.shape[1] * w.shape[2])
    else:
        matrix = w.flatten(1)  # (out, in·kh·kw)
    matrix = checked(matrix)
    if outputs is None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return Decomposition(down=s[:, None] * v, up=u, values=s, make=make)
    if len(outputs.total) != len(matrix):
        raise DataError(
            f"Moments of {len(outputs.total)} numbers for a convolution with "
            f"{len(matrix)} outputs: they were collected on another one."
        )
    # E[y yᵀ] about the mean, and a little of W Wᵀ in the same unit
    own = matrix @ matrix.T
    covariance = outputs.matrix(centred=True).to(own)
    level = damping * covariance.trace() / own.trace().clamp(min=1e-300)
    squares, u = torch.linalg.eigh(covariance + level * own)
    n = min(matrix.shape)  # eigenvalues come rising
    u, values = u.flip(1)[:, :n], squares.flip(0)[:n].clamp(min=0).sqrt()
    bias = conv.bias.detach().double() if conv.bias is not None else 0.0
    mean = outputs.mean.to(own) - bias
    means = mean, u.T @ mean
    return Decomposition(down=u.T @ matrix, up=u, values=values, make=make, means=means)


def decompose(
    model: nn.Module,
    kind: str = "channel",
    outputs: Mapping[str, Moments] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Decomposition]:
    """``svd`` of convolutions by name; default: all of ``convolutions(model)``.

    Raises:
        MicrobudgetError, DataError: as ``svd``; a name that isn't such a convolution.
    """
    found = convolutions(model)
    return {
        name: svd(pick(found, name), kind, pick(outputs, name) if outputs else None)
        for name in names or found
    }


def collect_outputs(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    names: Sequence[str] | None = None,
) -> dict[str, Moments]:
    """Run ``model(batch)`` over batches and sum up what its convolutions put out.

    Every pixel is a sample: a few pictures are many samples.

    Returns:
        name -> moments of that convolution's outputs.

    Raises:
        DataError: no batches. MicrobudgetError: a name that isn't such a convolution.
    """
    convs = convolutions(model)
    found, handles = {}, []
    for name in names or convs:
        conv = pick(convs, name)
        found[name] = Moments.zeros(conv.out_channels, conv.weight.device)

        def note(_, __, y, moments=found[name]):  # y (batch, out, height, width)
            moments.add(y.movedim(1, -1).reshape(-1, y.shape[1]))

        handles.append(conv.register_forward_hook(note))
    try:
        for batch in batches:
            with torch.no_grad():
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name, moments in found.items() if not moments.count]
    if silent:
        raise DataError(f"Nothing came out of {silent[0]}: give batches that reach it.")
    return found


def _padding(conv: nn.Conv2d) -> tuple:
    """Of the vertical and the horizontal convolution."""
    if isinstance(conv.padding, str):
        return conv.padding, conv.padding
    return (conv.padding[0], 0), (0, conv.padding[1])
