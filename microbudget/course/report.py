"""The tables, from the ledger; and the generated parts of the README."""

from pathlib import Path

from ..core import settings
from ..core.errors import MicrobudgetError
from ..core.files import atomic_path
from . import notebooks, run, summary

START, END = "<!-- generated: microbudget table --write -->", "<!-- end generated -->"
GLANCE = "<!-- generated: at a glance, microbudget table --write -->"


def books(here: settings.Settings) -> list[tuple[dict, str]]:
    """Every notebook's book with whose run it is: yours, or else the reference's."""
    reference = {book["notebook"]: book for book in run.read(_reference_folder())}
    own = {book["notebook"]: book for book in run.read(here.ledger)}
    same = here.ledger.resolve() == _reference_folder().resolve()
    return [
        (own[name], "reference" if same else "yours")
        if name in own
        else (reference[name], "reference")
        for name in sorted(reference | own)
    ]


def reference() -> list[tuple[dict, str]]:
    """The books of the runs that are committed with the course."""
    return [(book, "reference") for book in run.read(_reference_folder())]


def at_a_glance(chosen: list[tuple[dict, str]], *, for_readme: bool = False) -> str:
    """Markdown: a line of measured numbers a method; with links, and the chart."""
    head, lines = summary.table(chosen, anchors=for_readme)
    if not lines:
        return "The ledger is empty: run `make notebooks` first."
    found = _markdown(head, lines)
    return f"{found}\n\n{summary.chart(chosen)}" if for_readme else found


def every_row(chosen: list[tuple[dict, str]]) -> str:
    """A Markdown table, a line for every measured piece of work."""
    if not chosen:
        return "The ledger is empty: run `make notebooks` first."
    head = (
        "notebook", "what", "quality", "trainable", "wall s", "CPU s", "peak MB",
        "energy", "cost", "whose run",
    )  # fmt: skip
    lines = []
    for book, whose in chosen:
        for row in [*book["rows"], book["total"]]:
            lines.append(_line(book, row, whose))
    return _markdown(head, lines)


def course_table() -> str:
    """A Markdown table of notebooks with their question, minutes and memory."""
    reference = {book["notebook"]: book for book in run.read(_reference_folder())}
    head = ("notebook", "question", "minutes", "peak memory", "downloads once")
    lines = []
    for path in notebooks.find():
        book = reference.get(path.stem)
        link = f"[{path.stem}](notebooks/{path.name})"
        if book is None:
            lines.append((link, notebooks.question(path), "–", "–", "–"))
            continue
        total = book["total"]
        lines.append(
            (
                link,
                notebooks.question(path),
                f"{total['wall_s'] / 60:.1f}",
                f"{total['peak_memory_bytes'] / 1e9:.1f} GB",
                f"{book['bytes_downloaded'] / 1e6:.0f} MB",
            )
        )
    where = ""
    if reference:
        made = next(iter(reference.values()))["provenance"]
        where = (
            f"\n\nMeasured {made['date']} in profile {made['profile']} on "
            f"{made['threads']} cores ({made['processor']})."
        )
    return _markdown(head, lines) + where


def readme_with_table(text: str, table: str, start: str = START) -> str:
    """The README's text with what stands between two markers replaced.

    Raises:
        MicrobudgetError: the markers are missing.
    """
    before, found, rest = text.partition(start)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise MicrobudgetError(f"README.md lacks the lines {start!r} and {END!r}.")
    return f"{before}{start}\n{table}\n{END}{after}"


def between_markers(text: str, start: str) -> str:
    """What stands between ``start`` and the next end marker."""
    return text.partition(start)[2].partition(END)[0]


def write_readme() -> Path:
    """Bring the README's generated tables up to date, from the reference ledger."""
    path = _root() / "README.md"
    text = readme_with_table(path.read_text(encoding="utf-8"), course_table())
    text = readme_with_table(text, at_a_glance(reference(), for_readme=True), GLANCE)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _line(book: dict, row: dict, whose: str) -> tuple[str, ...]:
    energy = "not measured" if row["energy_j"] is None else f"{row['energy_j']:.0f} J"
    trainable = "" if row["trainable"] is None else f"{row['trainable']:,}"
    return (
        book["notebook"],
        row["name"],
        ", ".join(f"{name} {value:.3f}" for name, value in row["scores"].items()),
        trainable,
        f"{row['wall_s']:.1f}",
        f"{row['cpu_s']:.1f}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        energy,
        f"{row['cost']:.5f} {book['currency']}",
        whose,
    )


def _markdown(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def row(cells) -> str:
        padded = (cell.ljust(w) for cell, w in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([row(head), rule, *map(row, lines)])


def _reference_folder() -> Path:
    root = settings.project_root()
    return root / "data" / "ledger" if root else settings.load().home / "ledger"


def _root() -> Path:
    root = settings.project_root()
    if root is None:
        raise MicrobudgetError("There is no README here: run this in a checkout.")
    return root
