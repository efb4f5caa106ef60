"""Figures: functions that draw on Axes and return them."""

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from ..evaluation.comparison import Difference
from .style import BAD, BLUE, GOOD, YELLOW

_COLUMNS = 8  # of a grid of images


def image_grid(
    images, titles: Sequence[str] = (), colours: Sequence[str] = ()
) -> np.ndarray:
    """Images in a grid of eight columns, with up to two lines of text above each.

    Args:
        images: uint8 tensor (n, 3, height, width).
        titles: at most n; long ones are cut.
        colours: of the titles, as many.

    Returns:
        Array of Axes.
    """
    rows = math.ceil(len(images) / _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(_COLUMNS * 1.25, rows * 1.6), squeeze=False
    )
    colours = colours or ["black"] * len(titles)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(np.asarray(image.permute(1, 2, 0)))  # (height, width, 3)
    for axis, title, colour in zip(axes.flat, titles, colours, strict=False):
        text = "\n".join(textwrap.wrap(title, 17, max_lines=2, placeholder="…"))
        axis.set_title(text, fontsize=8, color=colour, pad=2)
    figure.tight_layout(pad=0.3)
    return axes


def bars(
    values: Mapping[str, float],
    label: str,
    errors: Sequence[float] = (),
    title: str = "",
) -> Axes:
    """One bar for each name with the value written at its end.

    Bars start at zero; with ``errors`` they are points with whiskers instead.
    """
    _, axis = plt.subplots(figsize=(7, 0.5 * len(values) + 0.9))
    names, heights = list(values), list(values.values())
    if len(errors):
        axis.errorbar(heights, names, xerr=list(errors), fmt="o", color=GOOD, capsize=3)
        axis.grid(axis="x", alpha=0.3)
    else:
        axis.barh(names, heights, color=GOOD)
    largest = max(map(abs, heights))
    digits = 3 if largest < 2 else 1 if largest < 200 else 0
    written = [  # small ones beside large ones keep two digits
        f"{h:,.{digits}f}" if abs(h) >= 10**-digits or not h else f"{h:.2g}"
        for h in heights
    ]
    for i, height in enumerate(heights):
        margin = errors[i] if len(errors) else 0
        axis.text(height + margin, i, f"  {written[i]}", va="center")
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)
    axis.margins(x=0.15, y=0.1)
    return axis


def stacked_bars(
    values: Mapping[str, Mapping[str, float]],
    label: str,
    scale: float = 1.0,
    title: str = "",
) -> Axes:
    """One bar for each name, made of its parts, each times ``scale``."""
    _, axis = plt.subplots(figsize=(7, 0.5 * len(values) + 1.2))
    parts = list(next(iter(values.values())))
    left = np.zeros(len(values))
    for part in parts:
        widths = np.array([scale * own[part] for own in values.values()])
        axis.barh(list(values), widths, left=left, label=part)
        left += widths
    for i, total in enumerate(left):
        axis.text(total, i, f"  {total:,.0f}", va="center")
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.margins(x=0.12)
    if title:
        axis.set_title(title, pad=26)  # the legend stands below it
    axis.legend(frameon=False, ncols=len(parts), fontsize=10, loc="lower center",
                bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    return axis


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    title: str = "",
) -> Axes:
    """One line for each name, through its (xs, ys)."""
    _, axis = plt.subplots()
    for (name, (xs, ys)), marker in zip(lines.items(), cycle("os^Dv*"), strict=False):
        axis.plot(xs, ys, marker=marker, label=name)
    axis.set(xlabel=x, ylabel=y, title=title)
    if len(lines) > 4:  # beside the axes
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axis.legend(frameon=False)
    return axis


def intervals(
    differences: Mapping[str, Difference],
    title: str,
    margin: float | None = None,
    highlight: Collection[str] = (),
) -> Axes:
    """One difference for each name: a point with its 95 % interval, against zero.

    Args:
        margin: what was set beforehand; drawn as a line, all that lies below it shaded.
        highlight: names that are drawn dark; default: all.
    """
    _, axis = plt.subplots(figsize=(7.5, 1.3 + 0.36 * len(differences)))
    for row, (name, found) in enumerate(differences.items()):
        colour = "#33526e" if name in highlight or not highlight else "#a9bccb"
        axis.plot([found.low, found.high], [row, row], color=colour, linewidth=3)
        axis.plot(found.value, row, "o", markersize=9, color=colour)
    axis.axvline(0, color="black", linewidth=1)
    if margin is not None:
        left = min(axis.get_xlim()[0], margin - 1)
        axis.axvline(margin, color=BAD, linestyle="--", linewidth=2)
        axis.axvspan(left, margin, color=BAD, alpha=0.08)
        axis.set_xlim(left=left)
        axis.text(margin, -0.75, "margin ", color=BAD, ha="right", va="center")
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set_ylim(len(differences) - 0.5, -1.1)
    unit = next(iter(differences.values())).unit
    axis.set(xlabel=f"{unit}, with 95 % intervals", title=title)
    axis.grid(alpha=0.3, axis="x")
    return axis


def confusion_matrix(matrix: np.ndarray, label: str = "class") -> Axes:
    """A confusion matrix as an image: row = true class, column = prediction."""
    _, axis = plt.subplots(figsize=(4.5, 4.2))
    image = axis.imshow(np.sqrt(matrix), cmap="Greens")
    axis.set(xlabel=f"predicted {label}", ylabel=f"true {label}")
    axis.figure.colorbar(image, label="√count", shrink=0.8)
    return axis


def waveform_and_mel(samples, mel, seconds: float) -> np.ndarray:
    """A recording as a wave and, below it, as Whisper sees it.

    Args:
        samples: (samples,). mel: (bands, frames). seconds: the recording's.

    Returns:
        Array of two Axes.
    """
    figure, axes = plt.subplots(2, 1, figsize=(7, 2.6), height_ratios=(1, 2))
    axes[0].plot(np.linspace(0, seconds, len(samples)), samples, linewidth=0.4)
    axes[0].set_xlim(0, seconds)
    axes[0].axis("off")
    axes[1].imshow(
        np.asarray(mel), aspect="auto", origin="lower", cmap="Greys",
        extent=(0, seconds, 0, len(mel)),
    )  # fmt: skip
    axes[1].set(xlabel="seconds", ylabel="mel band")
    figure.tight_layout(pad=0.3)
    return axes


def heatmap(values: np.ndarray, rows: Sequence[str], x: str, label: str) -> Axes:
    """A table of numbers (rows, columns) as colours."""
    _, axis = plt.subplots(figsize=(7, 0.3 * len(rows) + 1))
    image = axis.imshow(values, aspect="auto", cmap="YlGnBu")
    axis.set_yticks(range(len(rows)), rows, fontsize=9)
    axis.set_xlabel(x)
    axis.figure.colorbar(image, label=label)
    return axis


def scatter(
    values: Mapping[str, tuple[float, float]],
    x: str,
    y: str,
    colours: Mapping[str, str] | None = None,
    named: Collection[str] | None = None,
    log_y: bool = False,
) -> Axes:
    """One point for each name, at (x, y); ``named``: those that are labelled.

    A label stands where it covers no other one and no point, as far as that goes.
    """
    _, axis = plt.subplots(figsize=(7, 4.2))
    for name, point in values.items():
        axis.plot(*point, "o", color=(colours or {}).get(name, GOOD))
    axis.set(xlabel=x, ylabel=y, yscale="log" if log_y else "linear")
    axis.grid(alpha=0.3)
    axis.margins(x=0.17, y=0.1)
    taken = [
        Bbox.from_bounds(px - 4, py - 4, 8, 8)
        for px, py in map(axis.transData.transform, values.values())
    ]
    for name, point in sorted(values.items(), key=lambda item: item[1][1]):
        if named is not None and name not in named:
            continue
        colour = (colours or {}).get(name, GOOD)
        tried = []
        for dx, dy, side in _AROUND:
            label = axis.annotate(name, point, (dx, dy), textcoords="offset points",
                                  fontsize=9, color=colour, ha=side)  # fmt: skip
            box = label.get_window_extent()
            tried.append((sum(box.overlaps(other) for other in taken), label, box))
        _, label, box = min(tried, key=lambda found: found[0])
        taken.append(box)
        for _, other, _ in tried:
            if other is not label:
                other.remove()
    return axis


# where a label may stand beside its point: right, left, above, below, farther away
_AROUND = [
    (7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -14, "center"),
    (7, 8, "left"), (-7, 8, "right"), (7, -14, "left"), (-7, -14, "right"),
]  # fmt: skip


def log_x(axis: Axes) -> Axes:
    """A logarithmic x axis with plain numbers: … 1, 2, 5, 10 …"""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    return axis


def bit_fields(layouts: Sequence) -> Axes:
    """Numbers as rows of bits: sign, exponent and mantissa in their colours.

    Args:
        layouts: of ``quantization.formats``.
    """
    _, axis = plt.subplots(figsize=(8, 0.42 * len(layouts) + 0.6))
    colours = {"sign": BAD, "exponent": YELLOW, "mantissa": BLUE}
    for row, number in enumerate(layouts):
        x = 0
        for part, colour in colours.items():
            for bit in getattr(number, part):
                axis.barh(row, 0.92, left=x, height=0.8, color=colour)
                axis.text(x + 0.46, row, bit, ha="center", va="center",
                          fontsize=8, color="white")  # fmt: skip
                x += 1
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in colours.values()]
    axis.legend(handles, colours, frameon=False, ncols=3, fontsize=9,
                loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    axis.set_yticks(range(len(layouts)), [number.format for number in layouts])
    axis.invert_yaxis()
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    return axis


def histogram(
    values: Mapping[str, np.ndarray],
    label: str,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> Axes:
    """How often numbers occur, on a logarithmic scale, a colour for each name.

    Args:
        values: name -> numbers (n,).
        marks: name -> positions of vertical lines.
    """
    _, axis = plt.subplots()
    numbers = [np.asarray(own).ravel() for own in values.values()]
    edges = np.linspace(min(map(np.min, numbers)), max(map(np.max, numbers)), 120)
    for name, own in zip(values, numbers, strict=True):
        axis.hist(own, edges, alpha=0.6, label=name)
    for i, (name, positions) in enumerate((marks or {}).items()):
        for j, position in enumerate(positions):
            axis.axvline(position, color=f"C{i + len(values)}", linestyle="--",
                         label=None if j else name)  # fmt: skip
    axis.set(yscale="log", xlabel=label, ylabel="how many")
    axis.legend(frameon=False, fontsize=9)
    return axis
