"""How much a notebook does in a profile: ``sizes.toml``, read as ``run.config``."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

from ..core import settings

_FILE = Path(__file__).with_name("sizes.toml")


def config(notebook: str) -> SimpleNamespace:
    """The sizes of a notebook in this profile; empty for one without sizes.

    What a notebook computes depends on the profile alone, never on the processor. In
    profile ``full`` a notebook may have sizes for a GPU and for a CPU.
    """
    with open(_FILE, "rb") as file:
        sizes = tomllib.load(file).get(notebook, {})
    found = sizes.get(settings.load().profile, {})
    if "cuda" in found:
        found = found["cuda" if settings.device().startswith("cuda") else "cpu"]
    # lists become tuples, so that notebooks can use them as keys
    return SimpleNamespace(**{name: _frozen(value) for name, value in found.items()})


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
