"""Every method of the course in a line of measured numbers, and which one to use."""

import re

from ..core.settings import LOWER_IS_BETTER
from . import notebooks
from .methods import CHART, METHODS, Method

Books = list[tuple[dict, str]]  # ledger, whose run it is
_METRICS = ("accuracy", "map", "wer", "perplexity")  # a row's quality is the first


def table(books: Books, *, anchors: bool = False) -> tuple[tuple, list[tuple]]:
    """Head and lines of the at-a-glance table; methods without a run are left out.

    Args:
        anchors: begin a line with a place that the chart can link to.
    """
    head = ("method", "quality", "bytes", "time", "learns from", "made in",
            "lines of its notebook")  # fmt: skip
    lines = []
    for method in METHODS:
        found = figures(method, books)
        if found is None:
            continue
        place = f'<a id="{method.key}"></a>' if anchors else ""
        link = f"{place}[{method.name}](notebooks/{found['book']}.ipynb)"
        lines.append(
            (
                link if anchors else method.name, quality(found), _size(found),
                _time(found), method.needs,
                f"{found['seconds']:.0f} s, {found['cost']:.4f} {found['currency']}",
                str(found["lines"]),
            )
        )  # fmt: skip
    return head, lines


def figures(method: Method, books: Books) -> dict | None:
    """What was measured of a method; None where its rows are not in the ledger."""
    book = next((b for b, _ in books if b["notebook"][:2] == method.notebook), None)
    if book is None:
        return None
    rows = {row["name"]: row for row in book["rows"]}
    for other, _ in books:
        rows |= {f"{other['notebook'][:2]}:{row['name']}": row for row in other["rows"]}
    if not {method.row, method.base, *method.made} <= set(rows):
        return None  # an older run of the notebook
    row, base = rows[method.row], rows[method.base]
    told = [m for m in _METRICS if m in row["scores"] and m in base["scores"]]
    if not told:
        return None
    metric = told[0]
    made = [rows[name] for name in method.made]
    return {
        "book": book["notebook"], "metric": metric, "currency": book["currency"],
        "quality": (base["scores"][metric], row["scores"][metric]),
        "latency_ms": (_latency(base), _latency(rows[method.carrier or method.row])),
        "bytes": (_bytes(base), _bytes(rows[method.carrier or method.row])),
        "part": method.part,
        "seconds": sum(r["wall_s"] for r in made),
        "cost": sum(r["cost"] for r in made),
        "lines": notebooks.lines_of_code(book["notebook"]),
    }  # fmt: skip


def quality(found: dict) -> str:
    """Such as ``accuracy .811 → .740``; an arrow says which way is better."""
    before, after = found["quality"]
    better = "↓" if found["metric"] in LOWER_IS_BETTER else "↑"
    return f"{found['metric']} {before:.3f} → {after:.3f} {better}"


def chart(books: Books, link: str = "#{key}") -> str:
    """The decision chart as a Markdown list; every end quotes and links its row.

    Args:
        link: address of a method's row, with {key} and {book}.
    """
    methods = {method.key: method for method in METHODS}
    lines: list[str] = []

    def end(key: str, depth: int) -> None:
        found = figures(methods[key], books) if key in methods else None
        if found is not None:
            where = link.format(key=key, book=found["book"])
            told = ", ".join(filter(None, (quality(found), _size(found), _time(found))))
            lines.append(f"{'  ' * depth}- [{methods[key].name}]({where}): {told}")

    def walk(node, depth: int) -> None:
        if isinstance(node, tuple):
            for key in node:
                end(key, depth)
            return
        for question, answers in node.items():
            lines.append(f"{'  ' * depth}- **{question}**")
            for answer, rest in answers.items():
                lines.append(f"{'  ' * (depth + 1)}- {answer}")
                walk(rest, depth + 2)

    walk(CHART, 0)
    return "\n".join(lines)


def disagreements(text: str, books: Books) -> list[str]:
    """Where a printed table differs from the ledger: rows, or quality by over 2 %.

    Wall time, bytes and money are not compared: they differ from machine to machine.
    """
    printed = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith('| <a id="'):
            printed[re.search(r'id="([^"]+)"', line).group(1)] = cells[1]
    found = {m.key: figures(m, books) for m in METHODS}
    found = {key: values for key, values in found.items() if values}
    wrong = [f"{key}: only in one of the two" for key in set(printed) ^ set(found)]
    for key in set(printed) & set(found):
        metric, *numbers = re.findall(r"[a-z]+|\d+\.\d+", printed[key]) or [""]
        theirs = found[key]["quality"]
        same = metric == found[key]["metric"] and len(numbers) == len(theirs)
        close = all(
            abs(float(a) - b) <= 0.02 * abs(b) + 0.0005  # printed to three places
            for a, b in zip(numbers, theirs, strict=False)
        )
        if not (same and close):
            wrong.append(f"{key}: {printed[key]} is not {quality(found[key])}")
    return sorted(wrong)


def _latency(row: dict) -> float | None:
    return row["scores"].get("latency_ms")


def _bytes(row: dict) -> float | None:
    size = row["scores"].get("megabytes")
    return 1e6 * size if size else row["bytes_written"] or None


def _size(found: dict) -> str:
    pair = [size and size / 1e6 for size in found["bytes"]]
    return _change(pair, "MB", "+" if found["part"] else "→")


def _time(found: dict) -> str:
    before, after = found["latency_ms"]
    told = _change((before, after), "ms")
    return f"{told} ({before / after:.2f}×)" if before and after else told


def _change(pair, unit: str, sign: str = "→") -> str:
    """Such as ``2.0 → 1.0 MB``; what wasn't measured is left out."""
    before, after = pair
    if after is None:
        return ""
    return (
        f"{after:.1f} {unit}"
        if before is None
        else f"{before:.1f} {sign} {after:.1f} {unit}"
    )
