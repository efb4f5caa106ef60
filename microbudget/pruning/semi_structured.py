"""2:4 sparsity where a GPU computes it: half of the multiplications, really left out.

NVIDIA's sparse tensor cores (compute capability 8 and later) skip the two zeros of
every four weights of a linear layer (Mishra et al. 2021, arXiv:2104.08378). Torch
stores such a weight compressed: half of its numbers, and their positions.
"""

import copy
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
    if reason := why_no_two_four(str(linear.weight.device)):
        raise TrainingError(f"2:4 weights can't be compressed: {reason}.")
    sparse = copy.deepcopy(linear).half().requires_grad_(False)
    weight = sparse.weight.detach()
    if weight[~two_four_masks({"weight": weight})["weight"]].any():
        raise TrainingError(
            "This weight isn't 2:4 sparse: put two_four_masks on it and make them "
            "permanent."
        )
    with warnings.catch_warnings():  # torch calls this a prototype, once
        warnings.simplefilter("ignore", UserWarning)
        compressed = torch.sparse.to_sparse_semi_structured(weight)
    sparse.weight = nn.Parameter(compressed, requires_grad=False)
    return sparse
