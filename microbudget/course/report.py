"""The course's tables, from the run records; and their copies in the README."""

from dataclasses import dataclass
from pathlib import Path

from ..core import settings
from ..core.errors import MicrobudgetError
from ..core.files import atomic_path
from . import notebooks
from .methods import CHART, HEADLINES, METHODS, Method
from .run import read_records

Records = dict[str, dict]  # notebook -> its run record
COURSE = "<!-- generated: microbudget table --write -->"
RESULTS = "<!-- generated: results, microbudget table --write -->"
END = "<!-- end generated -->"
_METRICS = ("accuracy", "map", "wer", "perplexity")  # a row's quality is the first
_EMPTY = "There are no run records yet: run `make notebooks` first."


@dataclass(frozen=True)
class Result:
    """What was measured of a method, before and after it.

    Attributes:
        metric: of ``quality``, such as accuracy.
        latency_ms, size: milliseconds, bytes; None where it wasn't measured.
        on_base: the size is of what was trained alone, and comes on top of the base.
        seconds, cost: of all the work that the method took.
    """

    notebook: str
    metric: str
    quality: tuple[float, float]
    latency_ms: tuple[float | None, float | None]
    size: tuple[float | None, float | None]
    on_base: bool
    seconds: float
    cost: float

    @property
    def quality_text(self) -> str:
        """Such as ``accuracy 0.811 → 0.740 ↑``; the arrow points to what is better."""
        before, after = self.quality
        better = "↓" if self.metric in settings.LOWER_IS_BETTER else "↑"
        return f"{self.metric} {before:.3f} → {after:.3f} {better}"

    @property
    def size_text(self) -> str:
        megabytes = [size and size / 1e6 for size in self.size]
        return _change(megabytes, "MB", "+" if self.on_base else "→")

    @property
    def time_text(self) -> str:
        before, after = self.latency_ms
        ratio = f" ({before / after:.2f}×)" if before and after else ""
        return _change(self.latency_ms, "ms") + ratio

    @property
    def words(self) -> str:
        """Gain and loss, such as ``4.2× smaller, 1.5× as fast, −0.4 points``."""
        found, (before, after) = [], self.size
        if self.on_base:
            found.append(f"{before / after:,.0f}× less to store for each task")
        elif before and after and before > 1.05 * after:
            found.append(f"{before / after:.1f}× smaller")
        before, after = self.latency_ms
        if before and after and before > 1.1 * after:
            found.append(f"{before / after:.1f}× as fast")
        return ", ".join([*found, self.change])

    @property
    def change(self) -> str:
        """Of the quality, such as ``−0.4 points`` or ``perplexity +9 %``."""
        before, after = self.quality
        if self.metric == "perplexity":
            return f"perplexity {100 * (after / before - 1):+.0f} %".replace("-", "−")
        if self.metric == "accuracy" and after > before + 0.2:  # hardly done before
            return f"{100 * before:.0f} → {100 * after:.0f} % right"
        of = {"wer": " of word errors", "map": " of mAP"}.get(self.metric, "")
        points = f"{100 * (after - before):+.1f}"
        points = "0.0" if points in ("+0.0", "-0.0") else points.replace("-", "−")
        return f"{points} points{of}"

    def __str__(self) -> str:
        texts = (self.quality_text, self.size_text, self.time_text)
        return ", ".join(filter(None, texts))


def run_records(here: settings.Settings) -> Records:
    """Every notebook's run record: yours, or else the one committed with the course.

    ``record["whose"]`` says which.
    """
    records = reference_records()
    if here.ledger.resolve() != _reference_folder().resolve():
        own = read_records(here.ledger)
        records |= {name: record | {"whose": "yours"} for name, record in own.items()}
    return dict(sorted(records.items()))


def reference_records() -> Records:
    """The records of the runs that are committed with the course."""
    found = read_records(_reference_folder())
    return {name: record | {"whose": "reference"} for name, record in found.items()}


def method_result(method: Method, records: Records) -> Result | None:
    """What was measured of a method; None where its rows are not in the records."""
    own, every = {}, {}
    for name, record in records.items():
        rows = {row["name"]: row for row in record["rows"]}
        every |= {f"{name[:2]}:{row}": values for row, values in rows.items()}
        if name[:2] == method.notebook:
            own, notebook = rows, name
    rows, made = every | own, method.made or (method.row,)
    if not {method.row, method.base, *made} <= set(rows):
        return None  # not run yet, or an older run of the notebook
    before, after = rows[method.base], rows[method.row]
    carrier = rows[method.carrier or method.row]
    metric = next(m for m in _METRICS if m in before["scores"] and m in after["scores"])
    return Result(
        notebook, metric,
        quality=(before["scores"][metric], after["scores"][metric]),
        latency_ms=tuple(r["scores"].get("latency_ms") for r in (before, carrier)),
        size=(_bytes(before), _bytes(carrier)),
        on_base=method.on_base,
        seconds=sum(rows[name]["wall_s"] for name in made),
        cost=sum(rows[name]["cost"] for name in made),
    )  # fmt: skip


def at_a_glance(records: Records) -> str:
    """A Markdown table, a line of measured numbers for every method that has a run."""
    head = ("method", "quality", "bytes", "time", "trained on", "made in",
            "lines of its notebook")  # fmt: skip
    lines = []
    for method in METHODS:
        found = method_result(method, records)
        if found is None:
            continue
        made = f"{found.seconds:.0f} s, {found.cost:.4f} {settings.CURRENCY}"
        code = str(notebooks.lines_of_code(found.notebook))
        lines.append((method.name, found.quality_text, found.size_text, found.time_text,
                      method.needs, made, code))  # fmt: skip
    return _markdown(head, lines) if lines else _EMPTY


def decision_chart(records: Records) -> str:
    """The decision chart as a Markdown list; every end quotes and links its method."""
    methods = {method.key: method for method in METHODS}
    lines: list[str] = []

    def walk(node: dict | tuple, indent: str) -> None:
        if isinstance(node, tuple):  # keys of methods
            for key in node:
                if found := method_result(methods[key], records):
                    link = f"[{methods[key].name}]({found.notebook}.ipynb)"
                    lines.append(f"{indent}- {link}: {found}")
            return
        for question, answers in node.items():
            lines.append(f"{indent}- **{question}**")
            for answer, rest in answers.items():
                lines.append(f"{indent}  - {answer}")
                walk(rest, indent + "    ")

    walk(CHART, "")
    return "\n".join(lines)


def every_row(records: Records) -> str:
    """A Markdown table, a line for every measured piece of work."""
    head = ("notebook", "what", "quality", "trainable", "wall s", "CPU s", "peak MB",
            "cost", "whose run")  # fmt: skip
    lines = [
        (
            notebook,
            row["name"],
            ", ".join(f"{name} {score:.3f}" for name, score in row["scores"].items()),
            "" if row["trainable"] is None else f"{row['trainable']:,}",
            f"{row['wall_s']:.1f}",
            f"{row['cpu_s']:.1f}",
            f"{row['peak_memory_bytes'] / 1e6:,.0f}",
            f"{row['cost']:.5f} {record['currency']}",
            record["whose"],
        )
        for notebook, record in records.items()
        for row in [*record["rows"], record["total"]]
    ]
    return _markdown(head, lines) if lines else _EMPTY


def results_in_words(records: Records) -> str:
    """A Markdown table of some methods: what each of them bought, in a few words."""
    methods = {method.key: method for method in METHODS}
    lines = []
    for key, name in HEADLINES.items():
        if found := method_result(methods[key], records):
            link = f"[{name}](notebooks/{found.notebook}.ipynb)"
            lines.append((link, found.words, methods[key].needs))
    return _markdown(("what we do", "what it brings", "what it needs"), lines)


def course_table() -> str:
    """A Markdown table of notebooks: question, figure, minutes and memory."""
    from . import figures

    records = reference_records()
    head = ("notebook", "before and after", "minutes", "memory")
    lines, processors = [], set()
    for path in notebooks.find(list(records)):
        record = records[path.stem]
        total, made = record["total"], record["provenance"]
        processors.add(made["processor"])
        number, pair = path.stem[:2], figures.pair_of(path.stem[:2], records)
        image = f"![{pair}](notebooks/diagrams/results/{number}.svg)" if pair else ""
        lines.append((
            f"{number} [{notebooks.question(path)}](notebooks/{path.name})",
            image,
            f"{total['wall_s'] / 60:.1f}",
            f"{total['peak_memory_bytes'] / 1e9:.1f} GB",
        ))  # fmt: skip
    return (
        f"{_markdown(head, lines)}\n\nMeasured in profile {made['profile']} on "
        f"{made['threads']} cores ({', '.join(sorted(processors))})."
    )


def write_readme() -> Path:
    """Bring the README's tables and figures up to date, from the committed records."""
    path = notebooks.checkout() / "README.md"
    from . import figures

    records = reference_records()
    figures.write(records)
    text = replace_generated(path.read_text(encoding="utf-8"), COURSE, course_table())
    text = replace_generated(text, RESULTS, results_in_words(records))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def replace_generated(text: str, start: str, new: str) -> str:
    """The README's text with ``new`` between a start marker and the end after it."""
    before, found, rest = text.partition(start)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise MicrobudgetError(f"README.md lacks the lines {start!r} and {END!r}.")
    return f"{before}{start}\n{new}\n{END}{after}"


def _bytes(row: dict) -> float | None:
    size = row["scores"].get("megabytes")
    return 1e6 * size if size else row["bytes_written"] or None


def _change(pair, unit: str, sign: str = "→") -> str:
    """Such as ``2.0 → 1.0 MB``; what wasn't measured is left out."""
    before, after = pair
    start = f"{before:.1f} {sign} " if before is not None else ""
    return f"{start}{after:.1f} {unit}" if after is not None else ""


def _markdown(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]

    def row(cells) -> str:
        padded = (cell.ljust(w) for cell, w in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([row(head), rule, *map(row, lines)])


def _reference_folder() -> Path:
    root = settings.project_root()
    return root / "data" / "ledger" if root else settings.load().home / "ledger"
