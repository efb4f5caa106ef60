"""``torchvision`` and ``transformers`` that import next to a CPU-only torch.

The package index's torchvision is compiled against CUDA. Beside a CPU build of torch
its compiled half can't load, and ``import torchvision`` then stops at operators
that were never declared. Declaring them is enough: models, transforms and data sets
are plain Python; only the compiled box operators (nms, roi_align …) stay missing.

Use ``from microbudget.compat import torchvision`` wherever torchvision is needed, and
the same for transformers, whose models import it, and for peft, which imports those.
"""

import sys

import torch

_MISSING = ("nms", "qnms")
_library = None  # keeps the declarations alive


def _import_torchvision():
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if not any(f"torchvision::{name}" in str(error) for name in _MISSING):
            raise
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]  # the failed import leaves half a package behind
        _library = torch.library.Library("torchvision", "DEF")
        for name in _MISSING:
            _library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import torchvision
    return torchvision


torchvision = _import_torchvision()


def __getattr__(name: str):
    """transformers or peft, imported when first asked for: they take seconds."""
    if name == "peft":
        import peft
        import peft.functional

        return peft
    if name != "transformers":
        raise AttributeError(name)
    import transformers

    transformers.logging.set_verbosity_error()  # advice for its own training loops
    transformers.logging.disable_progress_bar()
    globals()[name] = transformers
    return transformers


def torchvision_has_compiled_operators() -> bool:
    """False next to a CPU-only torch: box operators are then missing."""
    return bool(torchvision.extension._has_ops())
