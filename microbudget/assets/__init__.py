"""Models and data sets: ``fetch("mobilenet-v2")`` gives a folder, cached for good."""

from .catalog import Asset, get, names, needed
from .store import (
    bytes_received,
    config,
    discard,
    fetch,
    find_real,
    load,
    locate,
    verify,
)

__all__ = [
    "Asset", "bytes_received", "config", "discard", "fetch", "find_real", "get", "load",
    "locate", "names", "needed", "verify",
]  # fmt: skip
