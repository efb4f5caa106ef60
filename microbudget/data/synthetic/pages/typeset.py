"""Typesetting a page of blocks whose boxes are noted: what a layout detector finds.

Running head, headings, paragraphs, synthetic flowers with captions, tables, equations,
references, page number.
"""

from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..flowers.scene import render as render_flower
from ..flowers.species import species
from ..speech import texts

CLASSES = (
    "text", "title", "figure", "figure caption", "table", "table caption", "header",
    "footer", "reference", "equation",
)  # fmt: skip
_FACES = (
    ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
)
_FORMULAS = (
    r"$E = m c^2 + \frac{1}{2} \rho v^2$",
    r"$\sum_{i=1}^{n} (x_i - \mu)^2 \leq n \sigma^2$",
    r"$W \approx U B, \quad \|W - U B\|^2 = \sum_{j>k} s_j^2$",
    r"$q = \mathrm{round}(x / S) + Z$",
    r"$\int_0^\infty e^{-t} t^{z-1} dt = \Gamma(z)$",
    r"$\hat{y} = \mathrm{softmax}(A x + b)$",
)
_FORMULA_DPI = 200  # dots per inch of rendered formulas
_NAMES = (
    "Marsh", "Okafor", "Lindqvist", "Tanaka", "Herrera", "Novak", "Byrne", "Rossi",
)  # fmt: skip


class Sheet:
    """A page being typeset: what is drawn is measured and noted."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        width = int(rng.integers(640, 860))
        height = int(width * rng.uniform(1.28, 1.42))
        paper = tuple((255 - rng.integers(0, 14, 3)).tolist())
        self.ink = (int(rng.integers(0, 60)),) * 3
        self.image = Image.new("RGB", (width, height), paper)
        self.draw = ImageDraw.Draw(self.image)
        face, bold = _FACES[rng.choice(3, p=(0.6, 0.2, 0.2))]
        size = int(width * rng.uniform(0.018, 0.021))
        self.body, self.small = _font(face, size), _font(face, max(9, size - 2))
        self.bold, self.large = _font(bold, size + 2), _font(bold, int(size * 1.7))
        self.step = int(size * rng.uniform(1.2, 1.4))  # from line to line
        self.boxes, self.labels, self.numbered = [], [], 0

    def compose(self) -> None:
        """Fill the page: head and foot, perhaps a title, one column or two."""
        rng, (width, height) = self.rng, self.image.size
        margin = int(width * rng.uniform(0.08, 0.12))
        top, bottom = int(height * 0.09), int(height * 0.92)
        inner = width - 2 * margin
        head, page = _random_words(rng, 4, 7), str(rng.integers(1, 400))
        self.lines("header", head, (margin, int(height * 0.045), inner), self.small)
        foot = (0, int(height * 0.945), width)
        self.lines("footer", page, foot, self.small, centred=True)
        if rng.random() < 0.6:
            title = _random_words(rng, 4, 8)
            top = self.lines("title", title, (margin, top, inner), self.large)
            top += self.step
        columns = int(rng.integers(1, 3))
        gap = int(width * 0.04)
        each = (inner - gap * (columns - 1)) // columns
        for column in range(columns):
            last = column == columns - 1
            self.fill(margin + column * (each + gap), top, each, bottom, ends=last)

    def note(self, kind: str, box) -> None:
        self.boxes.append(box)
        self.labels.append(CLASSES.index(kind))

    def lines(self, kind, text, column, font, *, centred=False) -> int:
        """Text broken into lines from (x, y, width) on; returns where they end."""
        (x, y, width), found = column, []
        step = self.step if font is self.body else int(font.size * 1.25)
        for i, line in enumerate(_wrap(text, font, width)):
            left = x + (width - font.getlength(line)) / 2 if centred else x
            position = (left, y + i * step)
            self.draw.text(position, line, self.ink, font)
            found.append(self.draw.textbbox(position, line, font))
        box = np.array(found)
        self.note(kind, (*box[:, :2].min(0), *box[:, 2:].max(0)))
        return int(y + len(found) * step)

    def heading(self, x, y, width) -> int:
        words = _random_words(self.rng, 2, 5)
        text = f"{self.rng.integers(1, 9)}  {words}"
        return self.lines("title", text, (x, y, width), self.bold)

    def caption(self, word, x, y, width) -> int:
        self.numbered += 1
        text = f"{word} {self.numbered}. {_random_words(self.rng, 5, 12)}"
        kind = f"{word.lower()} caption"
        return self.lines(kind, text, (x, y, width), self.small, centred=True)

    def figure(self, x, y, width) -> int:
        side = int(width * self.rng.uniform(0.45, 0.75))
        kind = species(int(self.rng.integers(0, 100)))
        flower = render_flower(kind, self.rng, 96).resize((side, int(side * 0.75)))
        left = x + (width - side) // 2
        self.image.paste(flower, (left, y))
        self.note("figure", (left, y, left + side, y + flower.height))
        return self.caption("Figure", x, y + flower.height + self.step // 3, width)

    def table(self, x, y, width) -> int:
        y = self.caption("Table", x, y, width) + self.step // 4
        rows, columns = int(self.rng.integers(4, 9)), int(self.rng.integers(3, 6))
        ruled = self.rng.random() < 0.5  # all cells, or only above and below
        high, wide = int(self.step * 1.15), width // columns
        right, bottom = x + wide * columns, y + high * rows
        for row in range(rows + 1) if ruled else (0, 1, rows):
            self.draw.line((x, y + row * high, right, y + row * high), self.ink)
        for column in range(columns + 1) if ruled else ():
            left = x + column * wide
            self.draw.line((left, y, left, bottom), self.ink)
        for row in range(rows):
            for column in range(columns):
                number = f"{self.rng.uniform(0, 100):.1f}"
                text = number if row and column else _random_words(self.rng, 1, 1)[:7]
                position = (x + column * wide + 6, y + row * high + 2)
                self.draw.text(position, text, self.ink, self.small)
        self.note("table", (x, y, right + 1, bottom + 1))
        return bottom + 2

    def equation(self, x, y, width) -> int:
        text = _FORMULAS[self.rng.integers(len(_FORMULAS))]
        mask = _formula(text, self.body.size)
        left = x + max(0, (width - mask.width) // 2)
        self.image.paste(self.ink, (left, y), mask)
        ink = mask.getbbox()
        self.note("equation", np.add(ink, (left, y, left, y)))
        return y + mask.height

    def references(self, x, y, width, bottom) -> int:
        # Set by hand: this heading is followed more closely than others.
        self.lines("title", "References", (x, y, width), self.bold)
        y += self.step + 4
        step, entries = int(self.small.size * 1.25), []
        for i in range(int(self.rng.integers(4, 9))):
            name = _NAMES[self.rng.integers(len(_NAMES))]
            year = self.rng.integers(1950, 2020)
            title = _random_words(self.rng, 6, 12)
            entry = f"[{i + 1}] {name}, {name[0]}. ({year}). {title}."
            entries += _wrap(entry, self.small, width)
        entries = entries[: max(1, (bottom - y) // step)]
        return self.lines("reference", "\n".join(entries), (x, y, width), self.small)

    def fill(self, x, y, width, bottom, *, ends) -> None:
        """A column of blocks from ``y`` down to ``bottom``."""
        low = bottom - (12 * self.step if ends and self.rng.random() < 0.5 else 0)
        lines_needed = {self.heading: 3.5, self.figure: width * 0.6 / self.step + 3,
                        self.table: 15, self.equation: 3}  # fmt: skip
        while low - y > 4 * self.step:
            room = (low - y) / self.step
            if self.rng.random() < 0.5:
                fits = [block for block, lines in lines_needed.items() if lines < room]
                if fits:
                    chosen = fits[self.rng.integers(len(fits))]
                    y = chosen(x, y, width) + int(self.step * 0.8)
                    room = (low - y) / self.step
            if room > 3:
                lines = int(self.rng.integers(2, max(3, min(10, int(room) - 1))))
                text = _random_lines(self.rng, self.body, width, lines)
                y = self.lines("text", text, (x, y, width), self.body)
                y += int(self.step * 0.8)
        if low < bottom:
            self.references(x, max(y, low), width, bottom)


def _random_words(rng, fewest: int, most: int) -> str:
    words = _sentences()[rng.integers(len(_sentences()))].rstrip(".").split()
    count = int(rng.integers(fewest, most + 1))
    return " ".join(words[:count]).rstrip(",;").capitalize()


def _random_lines(rng, font, width: int, lines: int) -> str:
    """So many lines of the course's sentences; the last one ends early."""
    text = ""
    while len(broken := _wrap(text, font, width)) <= lines:
        text += " ".join(
            _sentences()[i] for i in rng.integers(len(_sentences()), size=lines)
        )
    broken = broken[:lines]
    broken[-1] = " ".join(broken[-1].split()[: int(rng.integers(2, 9))])
    return "\n".join(broken)


def _wrap(text: str, font, width: float) -> list[str]:
    """Lines that a text breaks into; a word is as wide as it is alone."""
    lines, space = [], font.getlength(" ")
    for part in text.split("\n"):
        line, long = [], 0.0
        for word in part.split():
            wide = font.getlength(word)
            if line and long + wide > width:
                lines.append(" ".join(line))
                line, long = [], 0.0
            line.append(word)
            long += wide + space
        lines.append(" ".join(line))
    return lines


_sentences = cache(partial(texts, "train_short"))  # the course's own


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size
    )


def _formula(text: str, size: int) -> Image.Image:
    """A formula's ink as a mask (8 bit), for a body of so many pixels."""
    mask = _render_formula(text)
    factor = 72 * size / (10 * _FORMULA_DPI)
    return mask.resize([round(side * factor) for side in mask.size], Image.BILINEAR)


@cache
def _render_formula(text: str) -> Image.Image:
    """A formula set by matplotlib, finely, and only once: it takes a while."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    target, ten = BytesIO(), FontProperties(size=10)  # whatever size plots have
    math_to_image(text, target, prop=ten, dpi=_FORMULA_DPI, format="png")
    return ImageOps.invert(Image.open(target).convert("L"))
