"""The README's small figures: a method's before and after, one for each notebook."""

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from ..core.files import atomic_path
from .methods import METHODS
from .notebooks import checkout
from .report import Records, method_result

# notebook -> a method's key and what is shown of it
SHOWN = {
    "01": ("transfer", "quality"),
    "02": ("distil-speech", "size"),
    "03": ("lora", "size"),
    "04": ("gguf", "size"),
    "05": ("int8", "size"),
    "06": ("distil", "time"),
    "07": ("channels", "time"),
    "08": ("low-rank", "size"),
    "09": ("engine-int8", "time"),
    "10": ("detector", "size"),
    "11": ("stacked", "time"),
}
_WIDTH, _HEIGHT = 250, 62


@dataclass(frozen=True)
class Pair:
    """Two numbers to be drawn as bars.

    Attributes:
        what: they are of.
        texts: as they are written beside the bars.
        change: of the quality.
    """

    what: str
    values: tuple[float, float]
    texts: tuple[str, str]
    change: str = ""

    @property
    def caption(self) -> str:
        return f"{self.what}, {self.change}" if self.change else self.what

    def __str__(self) -> str:
        return f"{self.caption}: {self.texts[0]} before, {self.texts[1]} after"


def pair_of(notebook: str, records: Records) -> Pair | None:
    """What a notebook's figure shows; None where there is no run of it yet.

    Args:
        notebook: the first digits of its name.
    """
    if notebook == "00":
        found = [r for n, r in records.items() if n.startswith("00")]
        rows = {row["name"]: row["scores"] for r in found for row in r["rows"]}
        calls = [
            rows.get(n, {}).get("latency_ms") for n in ("first call", "later calls")
        ]
        return _pair("time of a call", calls, "ms") if all(calls) else None
    key, what = SHOWN[notebook]
    found = method_result(next(m for m in METHODS if m.key == key), records)
    if found is None:
        return None
    if what == "quality":
        return _pair(found.metric, [100 * value for value in found.quality], "%")
    if what == "size":
        of = "to store for one more task" if found.on_base else "size"
        return _pair(of, [size / 1e6 for size in found.size], "MB", found.change)
    return _pair("time for one input", found.latency_ms, "ms", found.change)


def draw(pair: Pair) -> str:
    """SVG: two bars on a white ground, which dark themes need."""
    longest = max(pair.values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-size="12" '
        'font-family="DejaVu Sans, Arial, sans-serif" fill="#222222">',
        f"<title>{escape(str(pair))}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="white"/>',
    ]
    for y, value, text, colour in zip(
        (5, 25), pair.values, pair.texts, ("#9aa5b1", "#2e7d32"), strict=True
    ):
        width = max(2.0, 140 * value / longest)
        parts.append(
            f'<rect x="4" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>'
            f'<text x="{width + 9:.1f}" y="{y + 12}">{escape(text)}</text>'
        )
    parts.append(f'<text x="4" y="56" fill="#555555">{escape(pair.caption)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def folder() -> Path:
    return checkout() / "notebooks" / "diagrams" / "results"


def write(records: Records) -> list[Path]:
    """Draw the figure of every notebook that has a run."""
    folder().mkdir(exist_ok=True)
    written = []
    for notebook in ("00", *SHOWN):
        if pair := pair_of(notebook, records):
            path = folder() / f"{notebook}.svg"
            with atomic_path(path) as temporary:
                temporary.write_text(draw(pair), encoding="utf-8")
            written.append(path)
    return written


def _pair(what: str, values, unit: str, change: str = "") -> Pair:
    before, after = values
    digits = 0 if min(before, after) >= 20 else 1 if min(before, after) >= 1 else 2
    texts = (f"{before:.{digits}f} {unit}", f"{after:.{digits}f} {unit}")
    return Pair(what, (before, after), texts, change)
