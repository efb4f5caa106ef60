"""How much a notebook does: the same names in both profiles, and all that it reads."""

import re

import nbformat
import pytest

from microbudget.course import notebooks, sizes


def config(path, profile, monkeypatch, device="cpu"):
    monkeypatch.setenv("MICROBUDGET_PROFILE", profile)
    monkeypatch.setattr(sizes.settings, "device", lambda: device)
    return vars(sizes.config(path.stem))


@pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.stem)
def test_a_notebook_finds_what_it_reads_in_both_profiles(path, monkeypatch):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    read = set(re.findall(r"\brun\.config\.(\w+)", code))
    if re.search(r"\bconfig\b.* = .*\brun\.config\b", code):
        read |= set(re.findall(r"(?<![\w.])config\.(\w+)", code))
    mini = config(path, "mini", monkeypatch)
    assert read == set(mini)
    for device in ("cpu", "cuda:0"):
        full = config(path, "full", monkeypatch, device)
        assert set(full) == set(mini)
        assert full != mini or not mini


def test_a_notebook_without_sizes_has_none(monkeypatch):
    assert vars(sizes.config("00_start_here")) == {}
