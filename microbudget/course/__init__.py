"""The course itself: run records and claims, sizes, tables, notebooks, the command."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "diagnose": "doctor",
        "start": "run",
        "METHODS": "methods",
        "recorded": "reference",
        "differences": "reference",
        "unpack": "reference",
        "run_records": "report",
        "at_a_glance": "report",
        "method_result": "report",
        "decision_chart": "report",
        "notebooks": "notebooks",
    },
)
