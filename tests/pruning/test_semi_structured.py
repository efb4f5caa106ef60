"""2:4 weights on a GPU that multiplies them; what is said where there is none."""

import pytest
import torch
from torch import nn

from microbudget.core.errors import TrainingError
from microbudget.pruning import criteria, masks, semi_structured


def linear(device="cpu"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128))
    masks.mask_(model, criteria.two_four_masks(masks.prunable_weights(model)))
    return masks.make_permanent_(model)[0].to(device)


def test_a_cpu_says_what_is_missing():
    assert "no NVIDIA GPU" in semi_structured.why_no_two_four("cpu")
    with pytest.raises(TrainingError, match="no NVIDIA GPU"):
        semi_structured.compress_two_four(linear())


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a CUDA device with sparse tensor cores",
)


@pytest.mark.gpu
@needs_gpu
def test_compressed_weights_compute_the_same():
    dense = linear("cuda").half()
    sparse = semi_structured.compress_two_four(dense)
    x = torch.randn(64, 256, device="cuda").half()
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), dense(x), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@needs_gpu
def test_dense_weights_are_refused():
    with pytest.raises(TrainingError, match="isn't 2:4"):
        semi_structured.compress_two_four(nn.Linear(256, 128).cuda())
