"""oneDNN's int8 convolution, as torch has it for CPUs.

The operators are those that ``torchao``'s PT2E lowers to; called directly they need no
compiler.
"""

import torch

# (scale, zero point) of a tensor of uint8 codes: x = scale · (code − zero point)
Grid = tuple[float, int]
# stride, padding, dilation, groups
Geometry = tuple[list[int], list[int], list[int], int]
POINTWISE: Geometry = ([1, 1], [0, 0], [1, 1], 1)


class Int8Convolution:
    """A convolution of uint8 inputs with int8 weights, added up in int32.

    y = Sx·Sw·Σ (qx − Zx)·qw + b, with a scale Sw for each output channel. The weights
    are symmetric (Zw = 0), so the sum needs no correction for their zero point; that
    for Zx is the kernel's own work, which is why it is told the inputs' grid.

    Args:
        codes: int8 values (out, in / groups, height, width), of any dtype.
        weight_scales: float32 (out,). bias: float32 (out,), or None.
        output_grid: the outputs are rounded to this grid and returned as uint8 codes;
            None: they are float32.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        weight_scales: torch.Tensor,
        geometry: Geometry,
        input_grid: Grid,
        bias: torch.Tensor | None = None,
        output_grid: Grid | None = None,
    ):
        self.geometry, self.weight_scales = geometry, weight_scales
        self.input_grid, self.output_grid = input_grid, output_grid
        self.bias = None if bias is None else bias.detach().float()
        self.weight_zero_points = torch.zeros(len(codes), dtype=torch.long)
        # oneDNN computes on blocks of channels, as wide as the processor's registers:
        # the weights are reordered once, here. The tensor can be read by oneDNN only.
        self.packed_weight = torch.ops.onednn.qconv_prepack(
            codes.to(torch.int8), weight_scales, *input_grid, *geometry, None
        )

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, in, height, width), channels_last -> uint8 codes or float32."""
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
        _sum_of_64_products(0, 0)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def adds_exactly() -> bool:
    """Whether sums of products stay exact with 8-bit weights.

    Processors before VNNI add two products in 16 bits first, which overflows: weights
    then get 7 bits (PyTorch's ``reduce_range`` does so to the inputs).
    """
    return _sum_of_64_products(255, 127) == 64 * 255 * 127


def _sum_of_64_products(code: int, weight: int) -> float:
    codes = torch.full((1, 64, 1, 1), code, dtype=torch.uint8)
    weights = torch.full((1, 64, 1, 1), weight)
    convolution = Int8Convolution(weights, torch.ones(1), POINTWISE, (1.0, 0))
    return float(convolution(codes.contiguous(memory_format=torch.channels_last)))
