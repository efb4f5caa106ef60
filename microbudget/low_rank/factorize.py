"""A linear map as two thin ones: W (out, in) ≈ up (out, k) · down (k, in), bias kept.

The best approximation of rank k, in the sum of squared errors, keeps the k largest
singular values (Eckart and Young 1936); what it loses is the sum of the squares of the
others, their *energy*. Two thin maps store k(out + in) numbers instead of out·in: a
gain below the break-even rank only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import MicrobudgetError
from ..core.modules import pick, plain_linear_layers, replace_layer


class Factored(nn.Sequential, ABC):
    """What takes the place of a map: two thinner ones, and how to multiply them out.

    Attributes:
        kind: how the map was cut. rank: numbers between the two.
    """

    kind: str
    rank: int

    @abstractmethod
    def merged(self) -> nn.Module:
        """One map again, with the product of the two as its weight."""


class LowRank(Factored):
    """``nn.Linear(in, k, bias=False)``, then ``nn.Linear(k, out)`` with the bias."""

    kind = "linear"

    @classmethod
    def of(cls, linear: nn.Linear, down, up, bias) -> "LowRank":
        """In place of ``linear``: down (k, in), up (out, k), bias (out,) or None."""
        first = nn.Linear(down.shape[1], down.shape[0], bias=False, device="meta")
        second = nn.Linear(*reversed(up.shape), bias=bias is not None, device="meta")
        new = cls(*filled((first, down), (second, up), bias=bias, like=linear.weight))
        return new.train(linear.training)

    @property
    def rank(self) -> int:
        return self[0].out_features

    @property
    def in_features(self) -> int:
        return self[0].in_features

    @property
    def out_features(self) -> int:
        return self[1].out_features

    def merged(self) -> nn.Linear:
        """One linear map again, with the product of the two as its weight."""
        down, up = self[0].weight, self[1].weight
        whole = nn.Linear(
            down.shape[1], up.shape[0], self[1].bias is not None, device="meta"
        )
        product = (up.double() @ down.double()).detach()
        (whole,) = filled((whole, product), bias=self[1].bias, like=down)
        return whole.train(self.training)


@dataclass(frozen=True)
class Decomposition:
    """A map cut into directions, the most valuable first.

    Attributes:
        down: float64 (n, in). up: float64 (out, n); up @ down is the whole matrix.
        values: float64 (n,), falling: the directions' singular values. Leaving out
            those after the k-th costs ``values[k:].square().sum()`` of squared error.
        make: (module, down, up, bias) -> the module that takes the place of it.
        means: float64 (out,) and (n,), or None: of the outputs without the bias, and of
            what comes down. What is left out of the former, the bias then keeps.
    """

    down: torch.Tensor
    up: torch.Tensor
    values: torch.Tensor
    make: Callable = LowRank.of
    means: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix that was cut."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def energy(self) -> torch.Tensor:
        """float64 (n + 1,): the share of energy that 0, 1, …, n directions keep."""
        squares = torch.cat([self.values.new_zeros(1), self.values.square()]).cumsum(0)
        return squares / squares[-1].clamp(min=torch.finfo(torch.float64).tiny)

    def error(self, rank: int) -> float:
        """What ``rank`` directions leave over: the square root of its squares' sum."""
        return float(self.values[rank:].square().sum().sqrt())

    def cut(self, rank: int, module: nn.Module) -> nn.Module:
        """The module that takes the place of ``module``, with ``rank`` directions.

        Each direction's length is shared evenly by its row of ``down`` and its column
        of ``up``, so that both learn at the same pace when they are trained on.

        Raises:
            MicrobudgetError: a rank below 1 or above the number of directions.
        """
        most = len(self.values)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise MicrobudgetError(
                f"rank={rank}: a map of {self.shape[1]} -> {self.shape[0]} can have a "
                f"whole rank from 1 to {most}."
            )
        down, up = self.down[:rank], self.up[:, :rank]
        bias = getattr(module, "bias", None)
        if self.means is not None:
            lost = self.means[0] - up @ self.means[1][:rank]
            bias = lost if bias is None else bias.detach().to(lost) + lost
        scale = (down.norm(dim=1) / up.norm(dim=0)).sqrt()
        scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
        return self.make(module, down / scale[:, None], up * scale, bias)


def svd(weight: torch.Tensor) -> Decomposition:
    """The singular value decomposition of a matrix (out, in), in float64.

    Raises:
        MicrobudgetError: not a matrix, or NaN or infinity in it.
    """
    u, s, v = torch.linalg.svd(checked(weight), full_matrices=False)
    return Decomposition(down=s[:, None] * v, up=u, values=s)


def decompose(
    model: nn.Module, names: Sequence[str] | None = None
) -> dict[str, Decomposition]:
    """The plain SVD of linear maps by name; default: of ``plain_linear_layers(model)``.

    Raises:
        MicrobudgetError: a name that isn't a linear map, NaN in a weight.
    """
    found = plain_linear_layers(model)
    return {name: svd(pick(found, name).weight) for name in names or found}


def break_even(out: int, into: int) -> int:
    """The largest rank k at which k(out + in) numbers are fewer than out·in; may be 0.

    Raises:
        MicrobudgetError: sizes below 1.
    """
    if min(out, into) < 1:
        raise MicrobudgetError(f"A map of {into} -> {out} has no numbers.")
    return (out * into - 1) // (out + into)


def uniform(found: Mapping[str, Decomposition], rank: int) -> dict[str, int]:
    """``rank`` for every map that gets smaller by it; the others stay whole.

    Raises:
        MicrobudgetError: a rank below 1.
    """
    if rank < 1:
        raise MicrobudgetError(f"rank={rank}: a map needs rank 1 at least.")
    return {name: rank for name, d in found.items() if rank <= break_even(*d.shape)}


def stored(found: Mapping[str, Decomposition], ranks: Mapping[str, int]) -> int:
    """Numbers in the maps' matrices, biases aside, when ``ranks`` are factorized."""
    shapes = {name: d.shape for name, d in found.items()}
    return sum(
        ranks[name] * sum(shape) if name in ranks else shape[0] * shape[1]
        for name, shape in shapes.items()
    )


def factorize(
    model: nn.Module, found: Mapping[str, Decomposition], ranks: Mapping[str, int]
) -> nn.Module:
    """Replace maps by thin ones, in place; maps without a rank stay whole.

    Args:
        found: decompositions by name, of ``decompose`` here or in ``activation_svd``
            or ``conv_factorization``.
        ranks: name -> rank.

    Raises:
        MicrobudgetError: no such decomposition, another shape than the model's, a rank
            that can't be. The model is then as it was.
    """
    modules = dict(model.named_modules())
    new = {}
    for name, rank in ranks.items():
        module = pick(modules, name)
        decomposition = pick(found, name)
        if not hasattr(module, "weight") or (
            module.weight.numel() != decomposition.shape[0] * decomposition.shape[1]
        ):
            raise MicrobudgetError(
                f"{name} is a {type(module).__name__} that these decompositions don't "
                f"fit ({decomposition.shape[1]} -> {decomposition.shape[0]}): was it "
                "factorized before? Take a fresh copy of the model."
            )
        new[name] = decomposition.cut(rank, module)
    for name, module in new.items():
        replace_layer(model, name, module)
    return model


def factored(model: nn.Module) -> dict[str, Factored]:
    """The maps that have been factorized, by name; each has a ``rank``."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Factored)}


def merge(model: nn.Module) -> nn.Module:
    """Multiply the thin maps out again, in place: whole maps, the same outputs.

    Raises:
        MicrobudgetError: nothing is factorized.
    """
    found = factored(model)
    if not found:
        raise MicrobudgetError("Nothing to merge: no map of this model is factorized.")
    for name, module in found.items():
        replace_layer(model, name, module.merged())
    return model


def checked(weight: torch.Tensor) -> torch.Tensor:
    """A matrix in float64, or a MicrobudgetError that says what is wrong with it."""
    matrix = weight.detach().double()
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise MicrobudgetError(f"A matrix is needed, got {tuple(weight.shape)}.")
    if not torch.isfinite(matrix).all():
        raise MicrobudgetError(
            "The weights hold NaN or infinity: they have no singular values. Load the "
            "model afresh, or look for the training step that diverged."
        )
    return matrix


def filled(*pairs, bias, like: torch.Tensor) -> list[nn.Module]:
    """Modules made on "meta" with these weights in ``like``'s type, the last a bias."""
    for module, weight in pairs:
        weight = weight.reshape(module.weight.shape).to(like.device, like.dtype)
        module.weight = nn.Parameter(weight.contiguous(), like.requires_grad)
    last = pairs[-1][0]
    if bias is not None:
        bias = bias.detach().to(like.device, like.dtype).clone()
        last.bias = nn.Parameter(bias, like.requires_grad)
    return [module for module, _ in pairs]
