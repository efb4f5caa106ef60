"""A linear layer as two thin ones: W (out, in) ≈ up (out, k) · down (k, in), bias kept.

The best approximation of rank k, in the sum of squared errors, keeps the k largest
singular values (Eckart and Young 1936); what it loses is the sum of the squares of the
others, their *energy*. Two thin layers store k(out + in) weights instead of out·in: a
gain below the break-even rank only.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..core.errors import MicrobudgetError
from ..core.modules import named_linear_layers, pick, replace_layer
from .layers import LowRank


@dataclass(frozen=True)
class Decomposition:
    """A layer's matrix as a sum of directions, the most valuable first.

    Attributes:
        down: float64 (n, in). up: float64 (out, n); up @ down is the whole matrix.
        values: float64 (n,), falling: the directions' singular values. Leaving out
            those after the k-th costs ``values[k:].square().sum()`` of squared error.
        kind: of the layer: linear, channel or spatial (see ``LowRank``).
        means: float64 (out,) and (n,), or None: the mean of the outputs without the
            bias, and of ``down``'s. The bias keeps what the left-out directions have
            of the former.
    """

    down: torch.Tensor
    up: torch.Tensor
    values: torch.Tensor
    kind: str = "linear"
    means: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def energy(self) -> torch.Tensor:
        """float64 (n + 1,): the fraction of energy that 0, 1, …, n directions keep."""
        squares = torch.cat([self.values.new_zeros(1), self.values.square()]).cumsum(0)
        return squares / squares[-1].clamp(min=torch.finfo(torch.float64).tiny)

    def error(self, rank: int) -> float:
        """The root of the squared error that ``rank`` directions leave."""
        return float(self.values[rank:].square().sum().sqrt())

    def truncate(self, rank: int, layer: nn.Module) -> LowRank:
        """The first ``rank`` directions as two thin layers, to replace ``layer``.

        Each direction's length is shared evenly by its row of ``down`` and its column
        of ``up``, so that both train at the same pace afterwards.

        Raises:
            MicrobudgetError: a rank below 1 or above the number of directions.
        """
        highest = len(self.values)
        if not isinstance(rank, int) or not 1 <= rank <= highest:
            raise MicrobudgetError(
                f"rank={rank}: a layer of {self.shape[1]} -> {self.shape[0]} can have "
                f"any rank from 1 to {highest}."
            )
        down, up = self.down[:rank], self.up[:, :rank]  # (k, in), (out, k)
        bias = layer.bias
        if self.means is not None:
            lost = self.means[0] - up @ self.means[1][:rank]  # (out,)
            bias = lost if bias is None else bias.detach().to(lost) + lost
        scale = (down.norm(dim=1) / up.norm(dim=0)).sqrt()  # (k,)
        # a direction without length (a weight of zeros) stays as it is
        scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
        thin = LowRank(layer, rank, self.kind, bias=bias is not None)
        return thin.set_weights(down / scale[:, None], up * scale, bias)


def svd(weight: torch.Tensor) -> Decomposition:
    """The singular value decomposition of a matrix (out, in), in float64."""
    u, s, v = torch.linalg.svd(finite_float64(weight), full_matrices=False)
    return Decomposition(down=s[:, None] * v, up=u, values=s)


def decompose(
    model: nn.Module, names: Sequence[str] | None = None
) -> dict[str, Decomposition]:
    """The plain SVD of linear layers by name; default: of all of a model's."""
    layers = named_linear_layers(model)
    return {name: svd(pick(layers, name).weight) for name in names or layers}


def break_even(outputs: int, inputs: int) -> int:
    """The largest rank at which two thin layers store fewer weights; may be 0."""
    return (outputs * inputs - 1) // (outputs + inputs)


def uniform_ranks(
    decompositions: Mapping[str, Decomposition], rank: int
) -> dict[str, int]:
    """``rank`` for every layer that gets smaller by it; the others stay whole."""
    return {n: rank for n, d in decompositions.items() if rank <= break_even(*d.shape)}


def count_weights(
    decompositions: Mapping[str, Decomposition], ranks: Mapping[str, int]
) -> int:
    """Numbers in the layers' matrices, biases aside, when factorized to ``ranks``."""
    return sum(
        ranks[name] * sum(d.shape) if name in ranks else d.shape[0] * d.shape[1]
        for name, d in decompositions.items()
    )


def factorize(
    model: nn.Module,
    decompositions: Mapping[str, Decomposition],
    ranks: Mapping[str, int],
) -> nn.Module:
    """A copy with thin layers in the place of those that have a rank.

    Args:
        decompositions: by the layer's name, of any ``decompose…`` function.
        ranks: name -> rank.

    Raises:
        MicrobudgetError: no such layer or decomposition, another shape than the
            model's, a rank that can't be.
    """
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    for name, rank in ranks.items():
        layer, decomposition = pick(layers, name), pick(decompositions, name)
        outputs, inputs = decomposition.shape
        if not hasattr(layer, "weight") or layer.weight.numel() != outputs * inputs:
            raise MicrobudgetError(
                f"{name} is a {type(layer).__name__} that its decomposition "
                f"({inputs} -> {outputs}) doesn't fit: was it factorized before? Take "
                "a fresh copy of the model."
            )
        replace_layer(model, name, decomposition.truncate(rank, layer))
    return model


def finite_float64(weight: torch.Tensor) -> torch.Tensor:
    """A weight in float64, without its gradient.

    Raises:
        MicrobudgetError: NaN or infinity in it.
    """
    if not torch.isfinite(weight).all():
        raise MicrobudgetError(
            "The weights hold NaN or infinity, so they have no singular values. Load "
            "the model afresh, or look for the training step that diverged."
        )
    return weight.detach().double()
