"""Figures of the course: functions that draw on Axes and return them."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "plt": "figures",
        "GOOD": "figures",
        "BAD": "figures",
        "QUIET": "figures",
        "picture_grid": "figures",
        "bars": "figures",
        "stacked": "figures",
        "curves": "figures",
        "confusion": "figures",
        "pyramid": "figures",
        "sound": "figures",
        "heat": "figures",
        "points": "figures",
        "log_x": "figures",
        "bit_fields": "figures",
        "histogram": "figures",
        "transcripts": "transcripts",
        "boxes": "boxes",
    },
)
