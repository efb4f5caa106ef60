"""2:4 sparsity where a GPU computes it: half of the multiplications, really left out.

NVIDIA's sparse tensor cores (compute capability 8 and later) skip the two zeros of
every four weights of a linear layer (Mishra et al. 2021, arXiv:2104.08378). Torch
stores such a weight compressed: half of its numbers, and their positions.
"""

import warnings

import torch
from torch import nn

from ..core.errors import TrainingError
from .criteria import two_four_masks


def why_no_two_four(device: str) -> str:
    """Why this device can't multiply 2:4 weights any faster; empty when it can."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return "there is no NVIDIA GPU here"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"sparse tensor cores need capability 8.0, this GPU has {capability}"
    return ""


def compress_two_four(linear: nn.Linear) -> nn.Linear:
    """A float16 copy of a linear layer on the GPU, its weight stored as 2:4.

    For inputs (rows, in) with a multiple of 8 rows, in inference mode.

    Raises:
        TrainingError: no such GPU, or the weights aren't 2:4 sparse.
    """
    device = str(linear.weight.device)
    if reason := why_no_two_four(device):
        raise TrainingError(f"2:4 weights can't be compressed: {reason}.")
    weight = linear.weight.detach().half()
    if not torch.equal(weight, weight * two_four_masks({"weight": weight})["weight"]):
        raise TrainingError(
            "This weight isn't 2:4 sparse: put two_four_masks on it and make them "
            "permanent."
        )
    has_bias = linear.bias is not None
    sizes = linear.in_features, linear.out_features
    sparse = nn.Linear(*sizes, has_bias, device, torch.float16).requires_grad_(False)
    if has_bias:
        sparse.bias.copy_(linear.bias.detach().half())
    with warnings.catch_warnings():  # torch calls this a prototype, once
        warnings.simplefilter("ignore", UserWarning)
        compressed = torch.sparse.to_sparse_semi_structured(weight)
    sparse.weight = nn.Parameter(compressed, requires_grad=False)
    return sparse
