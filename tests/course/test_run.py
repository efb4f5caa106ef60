"""The run record of a notebook: what it cost, what it achieved, what it claims."""

import json
import subprocess
import sys

import pytest
import torch

from microbudget.core import settings
from microbudget.course import cli
from microbudget.course.run import start


@pytest.fixture
def record(home, monkeypatch, capsys):
    monkeypatch.setenv("MICROBUDGET_PRICE_PER_HOUR", "3600")  # a unit a second
    run = start("01_transfer_learning")
    run.uses("toy", "three numbers")
    with run.measure("work") as row:
        sum(i * i for i in range(300_000))
        row.quality(accuracy=torch.tensor(0.5))
        row.model(torch.nn.Linear(3, 2))
    with run.measure("work") as row:  # the cell is run again
        row.quality(accuracy=0.75)
    run.finish()
    return json.loads((home / "runs/ledger/01_transfer_learning.json").read_text())


def test_a_record_says_what_it_cost_and_achieved(record):
    assert [row["name"] for row in record["rows"]] == ["work"]
    assert record["rows"][0]["scores"] == {"accuracy": 0.75}
    total = record["total"]
    assert total["cpu_s"] > 0
    assert total["cost"] == pytest.approx(total["wall_s"])
    assert total["peak_memory_bytes"] > 1e7
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    assert record["provenance"]["data"] == {"toy": "three numbers"}
    assert record["provenance"]["profile"] == "mini"


def test_the_banner_and_the_budget_are_printed(home, capsys, monkeypatch):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 0.0)  # an idle machine
    run = start("00_start_here")
    banner = capsys.readouterr().out
    assert banner.count("\n") == 1
    assert "00_start_here · profile mini" in banner
    total = run.finish()["total"]
    assert "downloaded" in capsys.readouterr().out
    assert run.finish()["total"] == total


def test_a_process_may_end_without_finishing(home):
    code = "import microbudget as mb; run = mb.start('00_start_here')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stderr == ""


def test_a_failed_cell_leaves_no_row(home):
    run = start("00_start_here")
    with pytest.raises(ZeroDivisionError), run.measure("broken"):
        _ = 1 / 0
    assert run.rows == []


def test_the_same_seed_gives_the_same_numbers(home):
    start("00_start_here")
    first = torch.rand(3)
    start("00_start_here")
    assert torch.equal(first, torch.rand(3))


def test_the_table_prefers_your_own_run(record, capsys):
    assert cli.main(["table", "--rows"]) == 0
    table = capsys.readouterr().out
    own = next(line for line in table.splitlines() if "| work" in line)
    assert "accuracy 0.750" in own
    assert own.rstrip(" |").endswith("yours")


@pytest.mark.parametrize("content", ['{"schema": 99}', "[]", "{"])
def test_a_foreign_file_among_the_records(content, home, capsys):
    folder = settings.load().ledger
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(content)
    assert cli.main(["table"]) == 1
    assert "x.json is not a run record of this version" in capsys.readouterr().err


def test_a_claim_is_checked_on_the_courses_data_and_reported_elsewhere(home, capsys):
    run = start("00_start_here")
    run.uses("flowers", "synthetic", checked=True)
    run.claim("two and two are four", True)
    with pytest.raises(AssertionError, match="are five"):
        run.claim("two and two are five", False)
    run.claim("two are faster than one", False, timing=True)
    run.uses("mine", "images of my own", checked=False)
    run.claim("two and two are six", False)
    printed = capsys.readouterr().out
    assert "It holds here: two and two are four" in printed
    assert "It does NOT hold here: two are faster than one" in printed
    assert "It does NOT hold here: two and two are six" in printed


@pytest.mark.parametrize(("percent", "said"), [(2, False), (60, True)])
def test_a_busy_machine_is_told_with_what_helps(percent, said, monkeypatch, capsys):
    import psutil

    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)
    monkeypatch.setenv("MICROBUDGET_THREADS", "2")
    start("00_start_here")
    assert ("OMP_WAIT_POLICY=passive" in capsys.readouterr().out) == said


def test_a_claim_prints_its_number_and_a_debrief_is_markdown(home, capsys):
    run = start("00_start_here")
    run.claim("two and two make four", True, "4.0 points")
    assert (
        "It holds here: two and two make four (4.0 points)." in capsys.readouterr().out
    )
    with pytest.raises(AssertionError, match="make five"):
        run.claim("two and two make five", False, 4)
    run.saw("All of it.")
    assert "Markdown" in capsys.readouterr().out
