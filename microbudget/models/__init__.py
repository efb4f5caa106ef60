"""The pretrained models of the course, each with its loader."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "mobilenet": "mobilenet",
        "vision": "vision",
        "bert": "bert",
        "smollm": "smollm",
        "bitsandbytes": "bitsandbytes",
        "whisper": "whisper",
        "whisper_forward": "whisper_forward",
    },
)
