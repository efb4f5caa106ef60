"""Where the time of decoding tokens goes, by torch's profiler."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .generation import SAMPLING

DEQUANTIZE = "dequantize"  # what packed layers call their unpacking
_BY_LABEL = {DEQUANTIZE: "dequantize", SAMPLING: "sampling",
             "aten::scaled_dot_product_attention": "attention"}  # fmt: skip
_MATMULS = ("aten::linear", "aten::matmul", "aten::mm", "aten::addmm", "aten::bmm")
PARTS = ("dequantize", "matmul", "attention", "sampling", "other")


def time_by_operation(function: Callable[[], object], device: str = "cpu") -> dict:
    """Milliseconds of one call by part; a call before it is not counted.

    Time is a torch operation's own, without those it calls; Python between them counts
    nowhere, so that the parts sum to less than the clock says.

    Returns:
        part of ``PARTS`` -> milliseconds.
    """
    function()
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler, torch.inference_mode():
        function()
    found: Counter = Counter()
    for event in profiler.events():
        if event.device_type != DeviceType.CPU:  # kernels: their callers count them
            continue
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[_part(event)] += own / 1e3
    return {part: found[part] for part in PARTS}


def _part(event) -> str:
    """What an operation belongs to, from its own name and those around it.

    The innermost label decides; without one, a product of matrices.
    """
    part = "other"
    while event is not None:
        if event.name in _BY_LABEL:
            return _BY_LABEL[event.name]
        if event.name in _MATMULS:
            part = "matmul"
        event = event.cpu_parent
    return part
