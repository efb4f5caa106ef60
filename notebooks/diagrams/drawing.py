"""One style for all drawings: boxes, arrows and words as SVG, at most 620 pixels wide.

Grey is frozen, green is trained, yellow is data, blue computes without parameters.
"""

from xml.sax.saxutils import escape

FROZEN, TRAINED, DATA, PLAIN = "#d5d8dc", "#8fd19e", "#fff3c4", "#cfe2f3"
INK, WARN = "#222222", "#c0392b"
MAX_WIDTH = 620


def sub(letter: str, index: str) -> str:
    """A letter in italics with an index, for ``Drawing.words``."""
    return (
        f'<tspan font-style="italic">{letter}</tspan><tspan dy="4" font-size="11">'
        f'{index}</tspan><tspan dy="-4">&#8203;</tspan>'
    )


class Drawing:
    """Shapes, one after the other; coordinates in pixels, y downwards."""

    def __init__(self, width: int, height: int, alt: str):
        assert width <= MAX_WIDTH, "a slide holds no more"
        self.alt = alt
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-size="15" '
            f'font-family="DejaVu Sans, Arial, sans-serif" fill="{INK}">',
            f"<title>{escape(alt)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" '
            'markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def box(
        self, x, y, w, h, colour=PLAIN, name="", below="", *, size=15, dashed=False
    ):
        """A box; lines of ``name`` (separated by newlines) are centred in it."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="3" fill="{colour}" '
            f'stroke="{INK}"{dash}/>'
        )
        lines = name.split("\n") if name else []
        for i, line in enumerate(lines):
            middle = y + h / 2 + (i - (len(lines) - 1) / 2) * size * 1.25
            self.words(x + w / 2, middle + size * 0.36, line, size=size)
        if below:
            self.words(x + w / 2, y + h + 18, below)

    def words(self, x, y, text, *, size=14, anchor="middle", colour=INK, bold=False):
        """Text; ``anchor`` is start, middle or end. May hold ``sub(…)``."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{colour}"{weight}>{text}</text>'
        )

    def line(self, *points, colour=INK, width=1.6, dashed=False, tip=False):
        path = " L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        end = ' marker-end="url(#tip)"' if tip else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"{dash}{end}/>'
        )

    def arrow(self, *points, dashed=False):
        self.line(*points, dashed=dashed, tip=True)

    def plus(self, x, y, sign="+"):
        self.parts.append(
            f'<circle cx="{x}" cy="{y}" r="12" fill="white" stroke="{INK}" '
            'stroke-width="1.6"/>'
        )
        self.words(x, y + 6, sign, size=20)

    def legend(self, x, y, *kinds):
        """A column of small boxes with their meaning: (colour, name) each."""
        kinds = kinds or ((FROZEN, "frozen"), (TRAINED, "trained"), (DATA, "data"))
        for i, (colour, name) in enumerate(kinds):
            self.box(x, y + 22 * i, 16, 14, colour)
            self.words(x + 24, y + 22 * i + 12, name, anchor="start")

    def __str__(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"
