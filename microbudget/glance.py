"""Every method of the course in a line of measured numbers, and which one to use.

A line names ledger rows, nothing else: what it says is what the last run measured.
"""

import re
from dataclasses import dataclass

from . import notebooks
from .settings import LOWER_IS_BETTER

Books = list[tuple[dict, str]]  # ledger, whose run it is
_METRICS = ("accuracy", "map", "wer", "perplexity")  # a row's quality is the first


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        key: of the decision chart. notebook: the name's first digits.
        row, base: ledger rows: what the method made, and from what.
        carrier: row with its bytes and latency, where another holds them.
        needs: what it learns or is calibrated from.
        made: rows whose work it took; "07:a row" is one of another notebook.
        part: the bytes are of what was learnt alone; serving it takes the base as well.
    """

    key: str
    name: str
    notebook: str
    row: str
    base: str
    needs: str
    made: tuple[str, ...]
    carrier: str = ""
    part: bool = False


METHODS = (
    Method(
        "transfer", "transfer: frozen MobileNetV2, linear head", "01",
        "three depths, firm, mirrored, 3 seeds", "from scratch: small CNN",
        "a few labelled pictures a class",
        ("features at three depths, mirrored", "three depths, firm, mirrored, 3 seeds"),
        "saved classifier",
    ),
    Method(
        "distil-speech", "distillation: Whisper, half of the decoder", "02",
        "student, all clips", "teacher, all clips", "speech, the teacher's transcripts",
        ("the teacher's lessons", "the student's training"),
    ),
    *(
        Method(
            key, name, "03", f"{key}, seeds 1 and 2", "full, seeds 1 and 2",
            "labelled sentences", (f"{key}, seeds 1 and 2",), part=True,
        )
        for key, name in (
            ("bitfit", "BitFit: biases alone"),
            ("ia3", "(IA)³: scales alone"),
            ("bottlenecks", "adapters in every layer"),
            ("lora", "LoRA, rank 8"),
            ("qlora", "QLoRA: LoRA on 4 bits"),
        )
    ),
    Method(
        "gptq", "GPTQ, 4 bits", "04", "GPTQ 4", "original", "some text", ("GPTQ 4",)
    ),
    Method(
        "gguf", "GGUF, Q4_K_M, by llama.cpp", "04", "Q4_K_M read", "F16 read",
        "nothing", ("GGUF files written",),
    ),
    Method("nf4", "NF4 while loading", "04", "NF4", "original", "nothing", ("NF4",)),
    Method(
        "int8", "int8, our own, static", "05", "MobileNetV2, int8",
        "MobileNetV2, float", "unlabelled pictures",
        ("MobileNetV2, static int8, simulated",),
    ),
    Method(
        "distil", "distillation: two layers of six", "06",
        "two_layers: 2 layers, soft + unlabelled", "the teacher",
        "a few labels, more sentences without",
        ("teacher's answers, computed", "two_layers: 2 layers, soft + unlabelled"),
    ),
    Method(
        "distil-lstm", "distillation: into a BiLSTM", "06",
        "bilstm: soft + unlabelled", "the teacher",
        "a few labels, more sentences without",
        ("teacher's answers, computed", "bilstm: soft + unlabelled"),
    ),
    Method(
        "channels", "pruning: channels removed, fine-tuned", "07",
        "flowers: the smaller fine-tuned", "flowers: fine-tuned", "labelled pictures",
        ("channels surveyed", "flowers: channels removed and mended",
         "flowers: the smaller fine-tuned"),
    ),
    Method(
        "heads", "pruning: heads and neurons removed", "07",
        "sentiment, heads and neurons removed", "sentiment, whole",
        "a few labelled sentences",
        ("encoder: importance of heads and neurons", "encoder: neurons surveyed",
         "sentiment, heads and neurons removed"),
    ),
    Method(
        "low-rank", "low rank, chosen by loss", "08", "low rank, by loss, budget of 32",
        "low rank: the whole network", "a few labelled sentences",
        ("moments of all inputs", "moments of all gradients",
         "SVD of every linear map, by loss"),
    ),
    Method(
        "engine", "another engine, in floats: OpenVINO", "09", "classifier, openvino",
        "classifier, torch", "nothing", ("three exports",),
    ),
    Method(
        "engine-int8", "another engine, in int8: ONNX Runtime", "09",
        "classifier, onnxruntime int8 dynamic", "classifier, torch", "nothing",
        ("three exports", "classifier, made int8 in three ways"),
    ),
    Method(
        "detector", "a detector in int8, its sensitive parts in floats", "10",
        "detector, int8, sensitive parts in float", "detector, float32",
        "pages, some with boxes",
        ("detector, int8 everywhere", "detector, a part at a time",
         "detector, int8, sensitive parts in float"),
    ),
    Method(
        "stacked", "stacked: distilled, pruned, ONNX Runtime int8", "11",
        "sentences: distilled, pruned, onnxruntime int8", "sentences: whole, torch",
        "labels, more sentences without",
        ("sentences: distilled", "sentences: distilled, pruned",
         "sentences: exported and quantized"),
    ),
    Method(
        "stacked-pictures", "stacked: channels removed, ONNX Runtime int8", "11",
        "flowers: pruned, onnxruntime int8", "flowers: whole, torch",
        "labelled pictures",
        ("07:flowers: fine-tuned", "07:channels surveyed",
         "07:flowers: channels removed and mended",
         "07:flowers: the smaller fine-tuned", "flowers: exported and quantized"),
    ),
)  # fmt: skip

# question -> answer -> another question, or the keys of methods
CHART = {
    "What is the trouble?": {
        "there is no model for my task yet": {
            "What may change?": {
                "nothing but a new head": ("transfer",),
                "a few weights, for many tasks beside each other": ("lora", "ia3"),
            }
        },
        "it doesn't fit into memory or on the disk": {
            "What is it?": {
                "a language model, on a CPU": ("gguf",),
                "a language model, on a GPU": ("gptq", "nf4"),
                "a network for pictures": ("int8", "detector"),
            }
        },
        "it is too slow": {
            "May it be trained again?": {
                "no": ("engine", "engine-int8"),
                "a little": ("channels", "heads", "low-rank"),
                "yes, and there are examples without labels": ("distil", "distil-lstm"),
            }
        },
        "all of that": ("stacked", "stacked-pictures"),
    }
}


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
    before, after = found["bytes"]
    if after is None:
        return ""
    if before is None:
        return f"{after / 1e6:.1f} MB"
    if found["part"]:
        return f"{before / 1e6:.1f} + {after / 1e6:.1f} MB"
    return f"{before / 1e6:.1f} → {after / 1e6:.1f} MB"


def _time(found: dict) -> str:
    before, after = found["latency_ms"]
    if after is None:
        return ""
    if before is None:
        return f"{after:.1f} ms"
    return f"{before:.1f} → {after:.1f} ms ({before / after:.2f}×)"
