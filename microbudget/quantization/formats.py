"""What a number is in memory: the bits of floats and of integers.

IEEE 754-2019, section 3.4; bfloat16 (Kalamkar et al. 2019, arXiv:1905.12322); float8
(Micikevicius et al. 2022, arXiv:2209.05433, table 1).
"""

from dataclasses import dataclass

import torch

# name -> (dtype, bits of the exponent, bits of the mantissa); integers have no exponent
FORMATS = {
    "float32": (torch.float32, 8, 23),
    "float16": (torch.float16, 5, 10),
    "bfloat16": (torch.bfloat16, 8, 7),
    "float8 e4m3": (torch.float8_e4m3fn, 4, 3),
    "float8 e5m2": (torch.float8_e5m2, 5, 2),
    "int8": (torch.int8, 0, 7),
}
_INTEGER_OF_WIDTH = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


@dataclass(frozen=True)
class NumberBits:
    """One number as it is stored.

    Attributes:
        value: what the bits mean: the nearest number that the format has.
        sign, exponent, mantissa: "0" and "1", most significant first; an integer has
            its seven other bits as mantissa (two's complement).
    """

    format: str
    value: float
    sign: str
    exponent: str
    mantissa: str


def to_bits(value: float, format: str) -> NumberBits:
    """Round ``value`` to a format and take its bits apart."""
    dtype, exponent, mantissa = FORMATS[format]
    if format == "int8":  # clipped, as quantization does; torch would wrap around
        value = max(-128, min(127, round(value)))
    number = torch.tensor(value).to(dtype)
    width = 1 + exponent + mantissa
    # The same bytes read as an integer; modulo 2^width, because it may be negative.
    integer = int(number.view(_INTEGER_OF_WIDTH[width])) % 2**width
    bits = f"{integer:0{width}b}"
    end = 1 + exponent
    return NumberBits(format, float(number), bits[0], bits[1:end], bits[end:])


def from_bits(bits: NumberBits) -> float:
    """The number from its bits alone: (−1)^s · 2^(e − bias) · 1.m, or its exceptions.

    With e = 0 there is no hidden 1 (subnormal); the largest e is infinity or NaN,
    except in float8 e4m3, which gives up infinity for a longer range.
    """
    if not bits.exponent:
        return int(bits.mantissa, 2) - 128 * int(bits.sign)
    sign = -1.0 if bits.sign == "1" else 1.0
    e, m = int(bits.exponent, 2), int(bits.mantissa, 2)
    bias, steps = 2 ** (len(bits.exponent) - 1) - 1, 2 ** len(bits.mantissa)
    largest = 2 ** len(bits.exponent) - 1
    has_infinity = bits.format != "float8 e4m3"
    if e == largest and (has_infinity or m == steps - 1):
        return float("nan") if m else sign * float("inf")
    if e == 0:
        return sign * 2.0 ** (1 - bias) * m / steps
    return sign * 2.0 ** (e - bias) * (1 + m / steps)


def representable_numbers(low: float, high: float, format: str) -> torch.Tensor:
    """Every number that an 8-bit format has between two bounds, sorted."""
    dtype = FORMATS[format][0]
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return numbers[(numbers >= low) & (numbers <= high)].unique()
