"""Figures hold the numbers that they were given."""

from microbudget.plotting import figures


def test_stacked_bars_add_up():
    values = {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}
    axis = figures.stacked_bars(values, "MB", 10)
    ends = [patch.get_x() + patch.get_width() for patch in axis.patches]
    assert ends == [10, 30, 30, 70]
