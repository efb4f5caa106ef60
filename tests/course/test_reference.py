"""Recorded runs: written with their provenance, shown as recorded, read back."""

import numpy as np
import pytest

from microbudget.core import settings
from microbudget.core.errors import MicrobudgetError
from microbudget.course import reference


def test_a_run_is_recorded_with_its_provenance_and_shown_as_recorded(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(settings, "project_root", lambda: tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(MicrobudgetError, match="No recorded run 'mine'"):
        reference.recorded("mine")
    reference.record("mine", "Five runs.", "python x.py", "sentences", {"a": [1]})
    assert reference.recorded("mine") == {"a": [1]}
    assert {"date", "processor", "versions"} <= set(
        reference.load("mine")["provenance"]
    )


def test_hits_are_packed_without_loss():
    hits = np.random.default_rng(0).random((3, 37)) < 0.7
    packed = [reference.pack(row) for row in hits]
    assert (reference.unpack(packed, 37) == hits).all()


def test_every_recorded_run_of_the_course_names_its_origin():
    found = sorted(reference.folder().glob("*.json"))
    assert len(found) >= 6
    for path in found:
        made = reference.load(path.stem)
        assert {"what", "command", "data", "provenance", "result"} <= set(made)
        assert made["command"].startswith("python tests/benchmarks/")
