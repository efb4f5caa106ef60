"""Two runs of a notebook with one seed give the same qualities."""

import json

import pytest

from microbudget.course import notebooks

TIMES = ("latency", "load_s", "seconds", "tokens_per", "rtf")


def qualities(folder, name) -> dict[str, dict[str, float]]:
    """The scores of a notebook's rows, run with its ledger in ``folder``."""
    assert notebooks.run([name]) == 0
    [ledger] = folder.glob(f"{name}*.json")
    return {
        row["name"]: {
            key: value
            for key, value in row["scores"].items()
            if not any(time in key for time in TIMES)
        }
        for row in json.loads(ledger.read_text())["rows"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["01", "03"])
def test_two_runs_with_one_seed_agree(name, tmp_path, monkeypatch):
    runs = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        monkeypatch.setenv("MICROBUDGET_LEDGER", str(folder))
        runs.append(qualities(folder, name))
    first, second = runs
    assert any(first.values())
    assert first == second
