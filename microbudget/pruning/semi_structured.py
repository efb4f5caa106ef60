"""2:4 sparsity where a GPU computes it: half of the multiplications, really left out.

NVIDIA's sparse tensor cores (compute capability 8 and later) skip the two zeros of
every four weights of a linear map (Mishra et al. 2021, arXiv:2104.08378). Torch stores
such a weight compressed: half of its numbers, and where each of them stood.
"""

import warnings

import torch
from torch import nn

from ..core.errors import TrainingError
from .criteria import two_four

CAPABILITY = (8, 0)


def why_not(device: str) -> str:
    """Why this device can't multiply 2:4 weights any faster; empty when it can."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return "there is no NVIDIA GPU here"
    have = torch.cuda.get_device_capability(device)
    if have < CAPABILITY:
        return f"sparse tensor cores need capability 8.0, this GPU has {have}"
    return ""


def compress(linear: nn.Linear) -> nn.Linear:
    """A float16 copy of a linear map on the GPU, its weight stored as 2:4.

    For inputs (rows, in) with a multiple of 8 rows, in inference mode.

    Raises:
        TrainingError: no such GPU, or weights that aren't ``pruning.two_four``'s.
    """
    device = str(linear.weight.device)
    if reason := why_not(device):
        raise TrainingError(f"2:4 weights can't be compressed: {reason}.")
    weight = linear.weight.detach().half()
    if not torch.equal(weight, weight * two_four({"weight": weight})["weight"]):
        raise TrainingError("This weight isn't 2:4 sparse: put pruning.two_four on it.")
    sparse = nn.Linear(
        linear.in_features, linear.out_features, linear.bias is not None, device,
        torch.float16,
    ).requires_grad_(False)  # fmt: skip
    if linear.bias is not None:
        sparse.bias.copy_(linear.bias.detach().half())
    with warnings.catch_warnings():  # torch calls it a prototype, once
        warnings.simplefilter("ignore", UserWarning)
        compressed = torch.sparse.to_sparse_semi_structured(weight)
    sparse.weight = nn.Parameter(compressed, requires_grad=False)
    return sparse
