"""How fast could it be? Bytes that must be read, against how fast memory gives them.

Decoding one token needs every weight once (Williams et al. 2009, the roofline model):
tokens a second ≤ bandwidth / bytes of weights. Reading a prompt uses each weight for
all its tokens, and is bound by arithmetic instead.
"""

import torch
from torch import nn

from ..core.errors import EvaluationError
from .timing import measure_latency

_BYTES = 512 * 2**20  # far more than any cache


def memory_bandwidth(device: str = "cpu", size: int = _BYTES) -> float:
    """Bytes a second when all threads read a large tensor once; the best of five.

    The best, not the median: it is an upper bound that is wanted.
    """
    data = torch.ones(size // 4, device=device)
    timing = measure_latency(data.sum, warmup=1, repeats=5, device=device)
    return data.nbytes / min(timing.seconds)


def bytes_per_token(model: nn.Module) -> int:
    """Bytes of weights that decoding one token reads: all but embeddings' other rows.

    An embedding that is also the head (tied) is read whole, as the head.

    Raises:
        EvaluationError: a library's own tensors, whose bytes torch doesn't tell.
    """
    tensors = [*model.parameters(), *model.buffers()]
    own = any(getattr(t, "quant_state", None) is not None for t in tensors)
    if own or any(not t.data_ptr() and t.numel() for t in tensors):
        raise EvaluationError(
            "The bytes of a library's own packed weights can't be counted: save the "
            "model and measure the file."
        )
    stored = {t.data_ptr(): t.nbytes for t in tensors}
    head = model.get_output_embeddings()
    rows = model.get_input_embeddings().weight
    if head is None or head.weight is not rows:
        stored.pop(rows.data_ptr(), None)
    return sum(stored.values())
