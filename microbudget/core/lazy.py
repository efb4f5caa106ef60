"""Names that a folder offers, loaded when they are first used."""

from collections.abc import Callable
from importlib import import_module


def attach(package: str, names: dict[str, str]) -> tuple[Callable, Callable]:
    """Make a folder's table of contents: its ``__getattr__`` and ``__dir__``.

    ``import microbudget`` must stay fast, so nothing here imports torch before a name
    that needs it is used.

    Args:
        package: the folder's ``__name__``.
        names: public name -> the module in this folder that defines it; with a leading
            dot, a module beside this folder (".training.loop"). A module that is public
            as a whole stands there under its own name.

    Returns:
        The two functions, to be assigned in the folder's ``__init__.py``.
    """

    def get(name: str):
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f".{names[name]}", package)
        # the import itself has already set the attribute of a module
        return module if name == names[name] else getattr(module, name)

    def list_names() -> list[str]:
        return sorted(names)

    return get, list_names
