"""What everything stands on: settings, errors, files, precision."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "settings": "settings",
        "errors": "errors",
        "files": "files",
        "progress": "progress",
        "compat": "compat",
        "precision": "precision",
        "onednn": "onednn",
        "modules": "modules",
    },
)
