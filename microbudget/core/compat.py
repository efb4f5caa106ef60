"""After ``import microbudget``, torchvision, transformers and peft import as usual.

The package index's torchvision is compiled against CUDA. Beside a CPU build of torch
its compiled half can't load, and ``import torchvision`` then stops at operators that
were never declared ("operator torchvision::nms does not exist"; transformers and peft,
which import it, name a model instead). Declaring the operators is enough: models,
transforms and data sets are plain Python, and only the compiled box operators stay
missing.

So ``import microbudget`` puts a finder before Python's own. It waits for torchvision's
first import and declares what is missing, without importing torch earlier than the user
does.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

_OPERATORS = ("nms", "qnms")
_declared = []  # keeps the declarations alive


def prepare_imports() -> None:
    """Make the plain imports work; called by ``import microbudget``."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def torchvision_has_compiled_operators() -> bool:
    """False beside a CPU-only torch: box operators such as nms are then missing."""
    import torchvision

    return bool(torchvision.extension._has_ops())


def _declare_missing_operators() -> None:
    """Load torchvision's compiled half; where it can't load, declare its operators."""
    import torch

    try:
        # torchvision asks for the path in this way, too; loading twice is harmless
        torch.ops.load_library(_path_of_compiled_half())
    except (ImportError, OSError):
        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _declared.append(library)


def _path_of_compiled_half() -> str:
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    details = (
        importlib.machinery.ExtensionFileLoader,
        importlib.machinery.EXTENSION_SUFFIXES,
    )
    for folder in spec.submodule_search_locations:
        found = importlib.machinery.FileFinder(folder, details).find_spec("_C")
        if found is not None:
            return found.origin
    raise ImportError("this torchvision has no compiled half")


def _quieten_transformers() -> None:
    """No progress bars, and no advice meant for transformers' own training loop."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class _Finder(importlib.abc.MetaPathFinder):
    """Python's own finder, with something done before or after a package's import."""

    BEFORE = {"torchvision": _declare_missing_operators}  # noqa: RUF012
    AFTER = {"transformers": _quieten_transformers}  # noqa: RUF012

    def find_spec(self, name: str, path=None, target=None):
        if name not in self.BEFORE and name not in self.AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(
                spec.loader, self.BEFORE.get(name), self.AFTER.get(name)
            )
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner, before, after):
        self.inner, self.before, self.after = inner, before, after

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = self.inner  # readers of package data ask for it
        if self.before:
            self.before()
        self.inner.exec_module(module)
        if self.after:
            self.after()
