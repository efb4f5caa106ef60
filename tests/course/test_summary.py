"""The at-a-glance table, the decision chart, and the fronts of notebook 11."""

import copy
import re
from dataclasses import replace

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import EvaluationError
from microbudget.course import cli, report, summary
from microbudget.evaluation import pareto

README = (ROOT / "README.md").read_text(encoding="utf-8")
METHOD = next(m for m in summary.METHODS if m.key == "distil")


def row(name, wall=1.0, **scores):
    return {
        "name": name, "scores": scores, "wall_s": wall, "cost": wall / 1000,
        "bytes_written": 0,
    }  # fmt: skip


@pytest.fixture
def books():
    rows = [
        row(METHOD.base, accuracy=0.81, latency_ms=20.0, megabytes=90.0),
        row(METHOD.row, 9.0, accuracy=0.74, latency_ms=5.0),
        row("teacher's answers, computed", 7.0),
    ]
    rows[1]["bytes_written"] = 62_000_000
    book = {"notebook": "06_knowledge_distillation", "rows": rows, "currency": "EUR"}
    return [(book, "yours")]


def test_a_line_says_what_the_ledger_holds(books):
    head, (line,) = summary.table(books)
    told = dict(zip(head, line, strict=True))
    assert told["quality"] == "accuracy 0.810 → 0.740 ↑"
    assert told["bytes"] == "90.0 → 62.0 MB"
    assert told["time"] == "20.0 → 5.0 ms (4.00×)"
    assert told["made in"] == "16 s, 0.0160 EUR"
    assert int(told["lines of its notebook"]) > 100
    part = replace(METHOD, part=True)
    assert summary._size(summary.figures(part, books)) == "90.0 + 62.0 MB"
    far = replace(METHOD, made=("07:surveyed",))
    assert summary.figures(far, books) is None
    elsewhere = {"notebook": "07_pruning", "rows": [row("surveyed", 5.0)]}
    assert summary.figures(far, [*books, (elsewhere, "yours")])["seconds"] == 5
    other = copy.deepcopy(books)
    other[0][0]["rows"].pop()  # an older run, without a row that the line needs
    assert summary.table(other)[1] == []


def test_less_is_better_where_it_is(books):
    for r in books[0][0]["rows"][:2]:
        r["scores"]["wer"] = r["scores"].pop("accuracy")
    assert summary.table(books)[1][0][1].endswith("↓")


def test_keys_are_unique_and_the_chart_ends_at_methods():
    keys = [method.key for method in summary.METHODS]
    assert len(set(keys)) == len(keys)

    def ends(node):
        if isinstance(node, tuple):
            return set(node)
        return {key for answers in node.values() for key in ends_of(answers)}

    def ends_of(answers):
        return {key for rest in answers.values() for key in ends(rest)}

    assert ends(summary.CHART) <= set(keys)


def test_a_charts_end_quotes_and_links_its_row(books):
    text = summary.chart(books, link="{book}.ipynb")
    (end,) = [line for line in text.splitlines() if "](" in line]
    assert f"[{METHOD.name}](06_knowledge_distillation.ipynb)" in end
    assert "0.810 → 0.740" in end


def test_the_readme_agrees_with_the_ledger_and_has_every_method():
    table = report.between_markers(README, report.GLANCE)
    books = report.reference()
    assert summary.disagreements(table, books) == []
    assert len(summary.table(books)[1]) == len(summary.METHODS)
    places = set(re.findall(r'<a id="([^"]+)"', table))
    links = set(re.findall(r"\]\(#([^)]+)\)", table))
    assert links and links <= places


def test_a_disagreement_is_seen(books):
    table = report.at_a_glance(books, for_readme=True)
    assert summary.disagreements(table, books) == []
    rows = books[0][0]["rows"]
    rows[1]["wall_s"], rows[1]["scores"]["latency_ms"] = 900.0, 77.0
    rows[1]["scores"]["accuracy"] = 0.75
    assert summary.disagreements(table, books) == []  # another machine, the same result
    rows[1]["scores"]["accuracy"] = 0.79
    (wrong,) = summary.disagreements(table, books)
    assert wrong.startswith("distil: accuracy 0.810 → 0.740")
    assert summary.disagreements("", books) == ["distil: only in one of the two"]
    assert summary.disagreements(table, []) == ["distil: only in one of the two"]


def test_the_command_prints_it(capsys):
    assert cli.main(["table"]) == 0
    printed = capsys.readouterr().out
    assert METHOD.name in printed
    assert "<a id" not in printed


numbers = st.tuples(st.integers(0, 5), st.integers(0, 5))
clouds = st.dictionaries(st.text("abcdef", min_size=1), numbers, min_size=1)


@given(points=clouds, higher=st.tuples(st.booleans(), st.booleans()))
def test_what_is_not_on_the_front_is_beaten_from_it(points, higher):
    front = pareto.pareto_front(points, higher)
    signs = [1 if up else -1 for up in higher]

    def beats(a, b):
        pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    assert front
    for name, own in points.items():
        beaten = any(beats(points[other], own) for other in front)
        assert beaten == (name not in front)


@pytest.mark.parametrize("values", [(1.0,), (1.0, float("nan"))])
def test_a_front_wants_numbers(values):
    with pytest.raises(EvaluationError, match="2 numbers wanted"):
        pareto.pareto_front({"a": values}, (True, True))
