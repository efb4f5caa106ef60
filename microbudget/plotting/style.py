"""How figures look, and how they are kept in a notebook: sharp, light, with a text."""

import io
import re
import sys
from xml.sax.saxutils import escape

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

GOOD, BAD, QUIET = "#2a7f62", "#c8553d", "#9aa5b1"
BLUE, YELLOW = "#3d6fb4", "#e0a030"
# told apart by colour-blind readers, too (after Okabe and Ito 2008)
COLOURS = (GOOD, BLUE, YELLOW, BAD, QUIET, "#7b4fa3", "#222222", "#59b8c4")
_PHOTO = 4096  # pixels: larger images in a figure are photographs, not tables
_SHADES = 64  # colours of a figure with photographs


def use_house_style() -> None:
    """Plain and readable from the last row; lines as SVG, photographs as PNG."""
    plt.rc("figure", dpi=80, figsize=(7.5, 3.6))
    plt.rc("font", size=12)
    plt.rc("axes", prop_cycle=plt.cycler(color=COLOURS))
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("svg", fonttype="none", hashsalt="microbudget")  # text as text; the same ids
    if "ipykernel" in sys.modules:
        _use_in_notebook()


def _use_in_notebook() -> None:
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg", "png")  # it switches the inline backend on
    formatters = get_ipython().display_formatter.formatters
    formatters["image/svg+xml"].for_type(Figure, _as_svg)
    formatters["image/png"].for_type(Figure, _as_png)
    formatters["text/plain"].for_type(Figure, lambda f, out, _: out.text(alt_text(f)))


def alt_text(figure: Figure) -> str:
    """What a figure shows, in words: titles, axes and lines' names."""
    parts = []
    for axis in figure.axes:
        names = [text.get_text() for text in _legend_texts(axis)]
        labels = [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        parts += [", ".join(filter(None, [*labels, *names])).replace("\n", " ")]
    parts = list(dict.fromkeys(filter(None, parts)))
    return "Figure: " + ("; ".join(parts[:12]) or "without words")


def _legend_texts(axis):
    legend = axis.get_legend()
    return legend.get_texts() if legend else []


def _has_photo(figure: Figure) -> bool:
    images = [image.get_array() for axis in figure.axes for image in axis.images]
    return any(image.shape[0] * image.shape[1] > _PHOTO for image in images)


def _as_svg(figure: Figure) -> str | None:
    if _has_photo(figure):
        return None
    file = io.StringIO()
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    title = f"<title>{escape(alt_text(figure))}</title>"
    return re.sub(r"(<svg[^>]*)>", rf'\1 role="img">{title}', drawing, count=1)


def _as_png(figure: Figure) -> tuple[bytes, dict] | None:
    """At twice the resolution, with few colours: as light as a soft JPEG."""
    if not _has_photo(figure):
        return None
    from PIL import Image

    file = io.BytesIO()
    scale = 2 * figure.dpi
    figure.savefig(file, format="png", bbox_inches="tight", dpi=scale)
    image = Image.open(file).convert("RGB")
    file = io.BytesIO()
    image.quantize(_SHADES, Image.Quantize.MEDIANCUT).save(file, "PNG", optimize=True)
    return file.getvalue(), {"width": image.width // 2, "alt": alt_text(figure)}
