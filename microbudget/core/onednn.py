"""oneDNN's int8 convolution, as torch has it for CPUs.

The operators are those that ``torchao``'s PT2E lowers to; called directly they need no
compiler.
"""

import torch
from torch import nn

# (scale, zero point) of a tensor of uint8 codes: x = scale · (code − zero point)
Grid = tuple[float, int]


class Int8Convolution:
    """A convolution of uint8 inputs with int8 weights, added up in int32.

    y = Sx·Sw·Σ (qx − Zx)·qw + b, with a scale Sw for each output channel. The weights
    are symmetric (Zw = 0), so the sum needs no correction for their zero point; that
    for Zx is the kernel's own work, which is why it is told the inputs' grid.

    Args:
        codes: int8 values (out, in / groups, height, width), of any dtype.
        weight_scales: float32 (out,).
        conv: whose stride, padding, dilation and groups are used; not its weight.
        input_grid: of the inputs.
        bias: float32 (out,), or None.
        output_grid: the outputs are rounded to this grid and returned as uint8 codes;
            None: they are float32.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        weight_scales: torch.Tensor,
        conv: nn.Conv2d,
        input_grid: Grid,
        bias: torch.Tensor | None = None,
        output_grid: Grid | None = None,
    ):
        self.geometry = (
            list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups
        )  # fmt: skip
        self.input_grid, self.output_grid = input_grid, output_grid
        self.bias = None if bias is None else bias.detach().float()
        self.weight_scales = weight_scales
        self.weight_zero_points = torch.zeros(len(codes), dtype=torch.long)
        # oneDNN computes on blocks of channels, as wide as the processor's registers:
        # the weights are reordered once, here. The tensor can be read by oneDNN only.
        self.packed_weight = torch.ops.onednn.qconv_prepack(
            codes.to(torch.int8), weight_scales, *input_grid, *self.geometry, None
        )

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, in, height, width) -> uint8 codes or float32.

        The inputs' memory should be in the order channels_last: the products that are
        added up then stand next to each other.
        """
        output_grid = self.output_grid or (1.0, 0)  # not looked at where floats leave
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        return torch.ops.onednn.qconv2d_pointwise.default(
            codes, *self.input_grid,
            self.packed_weight, self.weight_scales, self.weight_zero_points, self.bias,
            *self.geometry, *output_grid, dtype,
            "none", [], "",  # no operation, such as a ReLU, after the convolution
        )  # fmt: skip


def available() -> bool:
    """Whether this torch has oneDNN's int8 convolutions, and they compute here."""
    try:
        _one_pixel(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), weight=1)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def adds_exactly() -> bool:
    """Whether sums of products stay exact with 8-bit weights.

    Processors before VNNI add two products in 16 bits first, which overflows: weights
    then get 7 bits (PyTorch's ``reduce_range`` does so to the inputs).
    """
    x = torch.full((1, 64, 1, 1), 255, dtype=torch.uint8)
    return _one_pixel(x, weight=127) == 64 * 127 * 255.0


def _one_pixel(x: torch.Tensor, weight: int) -> float:
    """The sum of (1, channels, 1, 1) codes, times a weight, by the int8 kernel."""
    channels = x.shape[1]
    conv = nn.Conv2d(channels, 1, 1, device="meta")  # there no random weight is drawn
    weights = torch.full((1, channels, 1, 1), weight)
    convolution = Int8Convolution(weights, torch.ones(1), conv, (1.0, 0))
    return float(convolution(x.contiguous(memory_format=torch.channels_last)))
