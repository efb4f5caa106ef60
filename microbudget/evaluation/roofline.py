"""How fast could it be? Bytes that must be read, against how fast memory gives them.

Decoding one token needs every weight once (Williams et al. 2009, the roofline model):
tokens a second ≤ bandwidth / bytes of weights. Reading a prompt uses each weight for
all its tokens, and is bound by arithmetic instead.
"""

import torch

from .timing import measure_latency

_BYTES = 512 * 2**20  # far more than any cache


def memory_bandwidth(device: str = "cpu", size: int = _BYTES) -> float:
    """Bytes a second when all threads read a large tensor once; the best of five.

    The best, not the median: it is an upper bound that is wanted.
    """
    data = torch.ones(size // 4, device=device)
    timing = measure_latency(data.sum, warmup=1, repeats=5, device=device)
    return data.nbytes / min(timing.seconds)
