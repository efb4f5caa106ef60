"""The tables: the at-a-glance lines, the decision chart, the README's copies."""

import ast
import re
from dataclasses import replace

import nbformat
import pytest

from microbudget.core import settings
from microbudget.core.errors import MicrobudgetError
from microbudget.course import cli, figures, methods, notebooks, report

README = (settings.project_root() / "README.md").read_text(encoding="utf-8")
METHOD = next(m for m in methods.METHODS if m.key == "distil")
NOTEBOOK = "06_knowledge_distillation"


def row(name, wall=1.0, **scores):
    return {
        "name": name, "scores": scores, "wall_s": wall, "cost": wall / 1000,
        "bytes_written": 0,
    }  # fmt: skip


@pytest.fixture
def records():
    others = [name for name in METHOD.made if name != METHOD.row]
    rows = [
        row(METHOD.base, accuracy=0.81, latency_ms=20.0, megabytes=90.0),
        row(METHOD.row, 9.0, accuracy=0.74, latency_ms=5.0),
        *(row(name, 7.0) for name in others),
    ]
    rows[1]["bytes_written"] = 62_000_000
    return {NOTEBOOK: {"rows": rows, "currency": "EUR", "whose": "yours"}}


def test_a_result_says_what_the_record_holds(records):
    found = report.method_result(METHOD, records)
    assert str(found) == (
        "accuracy 0.810 → 0.740 ↑, 90.0 → 62.0 MB, 20.0 → 5.0 ms (4.00×)"
    )
    assert found.seconds == 9 + 7 * (len(METHOD.made) - 1)
    assert found.cost == pytest.approx(found.seconds / 1000)
    table = report.at_a_glance(records)
    assert METHOD.name in table and "accuracy 0.810 → 0.740 ↑" in table
    added = report.method_result(replace(METHOD, on_base=True), records)
    assert added.size_text == "90.0 + 62.0 MB"


def test_rows_of_other_notebooks_count_as_work(records):
    far = replace(METHOD, made=("07:importance",))
    assert report.method_result(far, records) is None
    records["07_pruning"] = {"rows": [row("importance", 5.0)], "currency": "EUR"}
    assert report.method_result(far, records).seconds == 5


def test_an_older_run_without_a_row_is_left_out(records):
    records[NOTEBOOK]["rows"].pop(1)
    assert report.method_result(METHOD, records) is None
    assert "no run records yet" in report.at_a_glance(records)
    assert "](" not in report.decision_chart(records)


def test_less_is_better_where_it_is(records):
    for r in records[NOTEBOOK]["rows"][:2]:
        r["scores"]["wer"] = r["scores"].pop("accuracy")
    assert report.method_result(METHOD, records).quality_text.endswith("↓")


def test_keys_are_unique():
    keys = [method.key for method in methods.METHODS]
    assert len(set(keys)) == len(keys)


def row_patterns(notebook):
    """What ``run.measure`` may be called with in a notebook, as regular expressions."""
    (path,) = notebooks.find([notebook])
    for cell in nbformat.read(path, as_version=4).cells:
        nodes = ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ()
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.measure":
                parts = getattr(node.args[0], "values", node.args)
                yield "".join(
                    re.escape(part.value) if isinstance(part, ast.Constant) else ".+"
                    for part in parts
                )


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: method.key)
def test_a_methods_rows_are_measured_in_its_notebook(method):
    rows = {method.row, method.base, *method.made, method.carrier or method.row}
    for row in rows:
        notebook, name = method.notebook, row
        if re.match(r"\d\d:", row):  # of another notebook
            notebook, name = row[:2], row[3:]
        patterns = row_patterns(notebook)
        assert any(re.fullmatch(pattern, name) for pattern in patterns), row


def test_a_charts_end_quotes_and_links_its_method(records):
    text = report.decision_chart(records)  # walks to every end
    (end,) = [line for line in text.splitlines() if "](" in line]
    assert f"[{METHOD.name}]({NOTEBOOK}.ipynb)" in end
    assert "0.810 → 0.740" in end


def cells(table, columns):
    """Of a Markdown table; the other columns differ from machine to machine."""
    lines = (line for line in table.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.split("|")[1:columns]] for line in lines]


def test_the_readme_agrees_with_the_committed_records():
    records = report.reference_records()
    glance = report.at_a_glance(records)
    assert len(cells(glance, 3)) == 1 + len(methods.METHODS), "run `make refresh`"
    for start, fresh in (
        (report.RESULTS, report.results_in_words(records)),
        (report.COURSE, report.course_table()),
    ):
        printed = README.partition(start)[2].partition(report.END)[0]
        assert printed.strip() == fresh.strip(), "run `microbudget table --write`"


def test_the_readmes_figures_agree_with_the_committed_records():
    records = report.reference_records()
    for notebook in ("00", *figures.SHOWN):
        drawn = (figures.folder() / f"{notebook}.svg").read_text(encoding="utf-8")
        assert drawn == figures.draw(figures.pair_of(notebook, records)), notebook
    pictures = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", README)
    assert len(pictures) >= 13 and all(alt for alt, _ in pictures)
    root = settings.project_root()
    assert all((root / path).is_file() for _, path in pictures)


def test_a_result_in_words(records):
    found = report.method_result(METHOD, records)
    assert found.words == "1.5× smaller, 4.0× as fast, −7.0 points"
    small = replace(found, on_base=True, latency_ms=(None, None))
    assert small.words == "1× less to store for each task, −7.0 points"
    surprised = replace(found, metric="perplexity", quality=(10.0, 11.5))
    assert surprised.words.endswith("perplexity +15 %")
    assert replace(found, quality=(0.3, 0.9)).words.endswith("30 → 90 % right")


def test_only_what_stands_between_the_markers_is_replaced():
    text = f"before\n{report.COURSE}\nold\n{report.END}\nafter\n"
    new = report.replace_generated(text, report.COURSE, "| new |")
    assert new == f"before\n{report.COURSE}\n| new |\n{report.END}\nafter\n"
    assert report.replace_generated(new, report.COURSE, "| new |") == new
    with pytest.raises(MicrobudgetError, match="lacks the lines"):
        report.replace_generated("no markers", report.COURSE, "x")


def test_the_command_prints_the_committed_records(home, capsys):
    assert cli.main(["table"]) == 0
    printed = capsys.readouterr().out
    assert METHOD.name in printed
    assert cli.main(["table", "--rows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1  # the columns are aligned
