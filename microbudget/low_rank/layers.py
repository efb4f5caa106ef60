"""The module that takes a layer's place: two thinner layers of torch's, in sequence."""

import torch
from torch import nn
from torch.nn.utils import skip_init  # layers without random numbers being drawn


class LowRank(nn.Sequential):
    """Two thin layers with ``rank`` numbers between them; the second has the bias.

    ======== ================================ ==========================================
    kind     first                            second
    ======== ================================ ==========================================
    linear   ``Linear(in, rank)``             ``Linear(rank, out)``
    channel  ``Conv2d(in, rank, (kh, kw))``   ``Conv2d(rank, out, 1)``
    spatial  ``Conv2d(in, rank, (kh, 1))``    ``Conv2d(rank, out, (1, kw))``
    ======== ================================ ==========================================

    Device, type, training mode and ``requires_grad`` are those of the original layer;
    the weights are to be set (``set_weights``, ``load_state_dict``).

    Args:
        layer: the ``nn.Linear`` or ``nn.Conv2d`` to be replaced.
        bias: whether the second layer has one.
    """

    def __init__(self, layer: nn.Module, rank: int, kind: str, bias: bool):
        common = {"device": layer.weight.device, "dtype": layer.weight.dtype}

        def convolution(inputs: int, outputs: int, axes: tuple, bias: bool):
            """``layer``'s geometry along ``axes``: neither kernel nor stride beside."""

            def along(values, other: int) -> tuple:
                return tuple(v if i in axes else other for i, v in enumerate(values))

            padding = layer.padding  # "same" and "valid" hold along every axis
            padding = padding if isinstance(padding, str) else along(padding, 0)
            return skip_init(
                nn.Conv2d, inputs, outputs, along(layer.kernel_size, 1),
                along(layer.stride, 1), padding, along(layer.dilation, 1),
                bias=bias, padding_mode=layer.padding_mode, **common,
            )  # fmt: skip

        if kind == "linear":
            first = skip_init(nn.Linear, layer.in_features, rank, bias=False, **common)
            second = skip_init(nn.Linear, rank, layer.out_features, bias, **common)
        else:
            axes = ((0, 1), ()) if kind == "channel" else ((0,), (1,))
            first = convolution(layer.in_channels, rank, axes[0], bias=False)
            second = convolution(rank, layer.out_channels, axes[1], bias=bias)
        super().__init__(first, second)
        self.kind, self.rank = kind, rank
        self.requires_grad_(layer.weight.requires_grad)
        self.train(layer.training)

    @torch.no_grad()
    def set_weights(self, down: torch.Tensor, up: torch.Tensor, bias=None) -> "LowRank":
        """Copy the factors of the original matrix into the two layers.

        Args:
            down: linear: (rank, in); channel: (rank, in·kh·kw); spatial: (rank, in·kh).
            up: linear, channel: (out, rank); spatial: (out·kw, rank).
            bias: (out,), or None.
        """
        first, second = self
        if self.kind == "spatial":
            out, rank, _, width = second.weight.shape
            up = up.reshape(out, width, rank).transpose(1, 2)  # (out, rank, kw)
        first.weight.copy_(down.reshape(first.weight.shape))
        second.weight.copy_(up.reshape(second.weight.shape))
        if bias is not None:
            second.bias.copy_(bias)
        return self

    @property
    def out_features(self) -> int:
        """Of a linear layer: a classifier's head is asked for its classes."""
        return self[1].out_features
