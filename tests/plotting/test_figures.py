"""Figures hold the numbers that they were given."""

import torch

from microbudget.evaluation import Difference
from microbudget.plotting import figures, style


def test_stacked_bars_add_up():
    values = {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}
    axis = figures.stacked_bars(values, "MB", 10)
    ends = [patch.get_x() + patch.get_width() for patch in axis.patches]
    assert ends == [10, 30, 30, 70]


def test_intervals_stand_against_zero_and_the_margin():
    found = {"a": Difference(1, 0, 2), "b": Difference(-4, -5, -3)}
    axis = figures.intervals(found, "a title", margin=-3)
    assert [line.get_xdata()[0] for line in axis.lines[:4:2]] == [0, -5]
    assert axis.get_xlim()[0] <= -5
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_plots_are_svg_with_a_text_and_photographs_light_png():
    axis = figures.curves({"one & two": ([1, 2], [3, 4])}, "steps", "%", "A title")
    svg = style._as_svg(axis.figure)
    assert svg.startswith("<svg") and "<title>Figure: A title, steps, %" in svg
    assert "one &amp; two" in svg
    assert style._as_png(axis.figure) is None
    images = torch.randint(0, 255, (2, 3, 80, 80), dtype=torch.uint8)
    figure = figures.image_grid(images, ["a", "b"]).flat[0].figure
    assert style._as_svg(figure) is None
    data, metadata = style._as_png(figure)
    assert data.startswith(b"\x89PNG") and metadata["alt"].startswith("Figure: a")
