"""The ledger and the tables made from it."""

import json
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from microbudget.core import settings
from microbudget.core.errors import MicrobudgetError
from microbudget.course import cli, report
from microbudget.course import run as ledger
from microbudget.evaluation import memory


@pytest.fixture
def book(home, monkeypatch, capsys):
    monkeypatch.setenv("MICROBUDGET_PRICE_PER_HOUR", "3600")  # a unit a second
    run = ledger.start("01_transfer_learning")
    run.uses("toy", "three numbers")
    with run.measure("work") as row:
        sum(i * i for i in range(300_000))
        row.quality(accuracy=torch.tensor(0.5))
        row.model(torch.nn.Linear(3, 2))
    with run.measure("work") as row:  # the cell is run again
        row.quality(accuracy=0.75)
    run.finish()
    return json.loads((home / "runs/ledger/01_transfer_learning.json").read_text())


def test_a_book_says_what_it_cost_and_achieved(book, capsys):
    assert [row["name"] for row in book["rows"]] == ["work"]
    assert book["rows"][0]["scores"] == {"accuracy": 0.75}
    total = book["total"]
    assert total["cpu_s"] > 0
    assert total["cost"] == pytest.approx(total["wall_s"])
    assert total["peak_memory_bytes"] > 1e7
    assert book["provenance"]["versions"]["torch"] == torch.__version__
    assert book["provenance"]["data"] == {"toy": "three numbers"}
    assert book["provenance"]["profile"] == "mini"
    assert (total["energy_j"] is None) == (book["energy_method"] == "not measured")


def test_the_banner_and_the_budget_are_printed(home, capsys):
    run = ledger.start("00_start_here")
    banner = capsys.readouterr().out
    assert banner.count("\n") == 1
    for word in ("00_start_here", "profile mini", "seed 0", "threads"):
        assert word in banner
    run.finish()
    budget = capsys.readouterr().out
    for word in ("time", "memory", "downloaded", "energy", "money"):
        assert word in budget


def test_finishing_twice_keeps_the_first_total(home):
    run = ledger.start("00_start_here")
    assert run.finish()["total"] == run.finish()["total"]


def test_starting_again_ends_the_run_before(home):
    first = ledger.start("00_start_here")
    measured, threads = len(memory._open), threading.active_count()
    for _ in range(5):
        last = ledger.start("00_start_here")
    assert (len(memory._open), threading.active_count()) == (measured, threads)
    assert first._total.wall_s > 0
    last.close()
    assert len(memory._open) == measured - 1


def test_a_process_may_end_without_finishing(home):
    code = "import microbudget as mb; run = mb.start('00_start_here')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stderr == ""


def test_a_measurement_may_be_dropped_by_its_own_thread(tmp_path, monkeypatch):
    """Garbage collection runs in whatever thread is at work."""
    monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "file")
    threads = threading.active_count()
    block = memory.peak_memory()
    block.__enter__()
    assert threading.active_count() == threads + 1
    looked = threading.Event()

    def look():
        del block._look  # once
        block.__exit__(None, None, None)
        looked.set()

    block._look = look
    assert looked.wait(5)


def test_a_failed_cell_leaves_no_row(home):
    run = ledger.start("00_start_here")
    with pytest.raises(ZeroDivisionError), run.measure("broken"):
        _ = 1 / 0
    assert run.rows == []


def test_the_same_seed_gives_the_same_numbers(home):
    ledger.start("00_start_here")
    first = torch.rand(3)
    ledger.start("00_start_here")
    assert torch.equal(first, torch.rand(3))


def test_a_name_that_would_leave_the_folder(home):
    with pytest.raises(MicrobudgetError, match="not a notebook's name"):
        ledger.start("../evil")


def test_the_table_prefers_your_own_run(book, capsys):
    assert cli.main(["table", "--rows"]) == 0
    table = capsys.readouterr().out
    own = next(line for line in table.splitlines() if "| work" in line)
    assert "accuracy 0.750" in own
    assert own.rstrip(" |").endswith("yours")
    widths = {len(line) for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 1  # the columns are aligned


def test_a_foreign_file_in_the_ledger(home, capsys):
    folder = settings.load().ledger
    folder.mkdir(parents=True)
    (folder / "x.json").write_text('{"schema": 99}')
    assert cli.main(["table"]) == 1
    assert "not a ledger of this version" in capsys.readouterr().err


def test_only_what_stands_between_the_markers_is_replaced():
    text = f"before\n{report.START}\nold\n{report.END}\nafter\n"
    new = report.readme_with_table(text, "| new |")
    assert new == f"before\n{report.START}\n| new |\n{report.END}\nafter\n"
    assert report.readme_with_table(new, "| new |") == new
    with pytest.raises(MicrobudgetError, match="lacks the lines"):
        report.readme_with_table("no markers", "x")


def test_the_readmes_table_has_the_ledgers_rows():
    readme = (settings.project_root() / "README.md").read_text()
    for path in (settings.project_root() / "notebooks").glob("*.ipynb"):
        assert f"[{path.stem}](notebooks/{path.name})" in readme

    def but_measures(table):  # minutes and memory differ from machine to machine
        lines = (line for line in table.splitlines() if line.startswith("| ["))
        return [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]

    printed = report.between_markers(readme, report.START)
    assert but_measures(printed) == but_measures(report.course_table())


def test_a_ledger_on_a_full_disk_is_clear(home, monkeypatch):
    import errno

    run = ledger.start("00_start_here")

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", no_space)
    with pytest.raises(MicrobudgetError, match="disk is full"):
        run.finish()
    assert not list(run.settings.ledger.iterdir())
    shutil.rmtree(run.settings.ledger)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_claim_is_checked_on_the_courses_data_and_reported_elsewhere(
    home, capsys, monkeypatch, device
):
    monkeypatch.setattr(settings, "device", lambda: device)
    run = ledger.start("00_start_here")
    run.uses("garden", "drawn", checked=True)
    run.claim("two and two are four", True)
    with pytest.raises(AssertionError, match="are five"):
        run.claim("two and two are five", False)
    run.claim("two are faster than one", False, timing=True)
    run.uses("mine", "pictures of my own", checked=False)
    run.claim("two and two are six", False)
    printed = capsys.readouterr().out
    assert "It holds here: two and two are four" in printed
    assert "It does NOT hold here: two are faster than one" in printed
    assert "It does NOT hold here: two and two are six" in printed
    run.close()
