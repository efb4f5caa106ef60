"""What a number is in memory: the bits of floats and of whole numbers.

IEEE 754-2019, section 3.4; bfloat16 (Kalamkar et al. 2019, arXiv:1905.12322); float8
(Micikevicius et al. 2022, arXiv:2209.05433, table 1).
"""

from dataclasses import dataclass

import torch

from ..core.errors import QuantizationError

# name -> (dtype, bits of the exponent, bits of the mantissa); whole numbers have none
FORMATS = {
    "float32": (torch.float32, 8, 23),
    "float16": (torch.float16, 5, 10),
    "bfloat16": (torch.bfloat16, 8, 7),
    "float8 e4m3": (torch.float8_e4m3fn, 4, 3),
    "float8 e5m2": (torch.float8_e5m2, 5, 2),
    "int8": (torch.int8, 0, 7),
}
_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Layout:
    """One number as it is stored.

    Attributes:
        value: what the bits mean: the nearest that the format has.
        sign, exponent, mantissa: "0" and "1", most significant first; a whole number
            has its seven other bits as mantissa (two's complement).
    """

    format: str
    value: float
    sign: str
    exponent: str
    mantissa: str

    @property
    def bits(self) -> str:
        return self.sign + self.exponent + self.mantissa


def layout(value: float, format: str) -> Layout:
    """Round ``value`` to a format and take its bits apart.

    Raises:
        QuantizationError: an unknown format, or a value that int8 has no place for.
    """
    if format not in FORMATS:
        raise QuantizationError(f"format={format!r}: use one of {list(FORMATS)}.")
    dtype, exponent, mantissa = FORMATS[format]
    if format == "int8" and not -128.5 <= value <= 127.5:  # and so no NaN
        raise QuantizationError(f"{value} is outside of int8's −128 … 127: scale it.")
    whole = format == "int8"
    number = torch.tensor(max(-128, min(127, round(value))) if whole else value)
    number = number.to(dtype)
    width = 1 + exponent + mantissa
    whole = int(number.view(_SAME_WIDTH[width // 8])) % 2**width
    bits = f"{whole:0{width}b}"
    return Layout(
        format, float(number), bits[0], bits[1 : 1 + exponent], bits[1 + exponent :]
    )


def meaning(bits: Layout) -> float:
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
    if bits.format == "float8 e4m3":
        if e == largest and m == steps - 1:
            return float("nan")
    elif e == largest:
        return float("nan") if m else sign * float("inf")
    if e == 0:
        return sign * 2.0 ** (1 - bias) * m / steps
    return sign * 2.0 ** (e - bias) * (1 + m / steps)


def neighbours(low: float, high: float, format: str) -> torch.Tensor:
    """Every number that an 8-bit format has between two bounds, sorted.

    Raises:
        QuantizationError: a format of more than eight bits: there are too many.
    """
    if format not in FORMATS or FORMATS[format][0].itemsize != 1:
        raise QuantizationError(f"{format!r} is no format with few numbers to list.")
    dtype = FORMATS[format][0]
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return every[(every >= low) & (every <= high)].unique()
