"""The course itself: runs and their claims, sizes, tables, notebooks, the command."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "run": "run",
        "sizes": "sizes",
        "summary": "summary",
        "report": "report",
        "methods": "methods",
        "notebooks": "notebooks",
        "doctor": "doctor",
    },
)
