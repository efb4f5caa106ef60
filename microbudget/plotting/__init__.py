"""Figures of the course: functions that draw on Axes and return them."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "plt": "figures",
        "GOOD": "style",
        "BAD": "style",
        "QUIET": "style",
        "image_grid": "figures",
        "bars": "figures",
        "stacked_bars": "figures",
        "curves": "figures",
        "intervals": "figures",
        "scatter": "figures",
        "log_x": "figures",
        "histogram": "figures",
        "heatmap": "figures",
        "confusion_matrix": "figures",
        "waveform_and_mel": "figures",
        "bit_fields": "figures",
        "compare_boxes": "boxes",
        "compare_transcripts": "transcripts",
        "side_by_side": "transcripts",
    },
)
