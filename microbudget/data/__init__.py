"""Data sets and their loaders: real ones where there are any, else embedded ones."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "flowers": "flowers",
        "images": "images",
        "audio": "audio",
        "speech": "speech",
        "text": "text",
        "prose": "prose",
        "dialogue": "dialogue",
    },
)
