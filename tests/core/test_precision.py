"""bfloat16 is decided once per machine, and the same ever after."""

import itertools
import json

import pytest
import torch

from microbudget.core import precision
from microbudget.core.errors import SettingsError


@pytest.fixture
def native(home, monkeypatch):
    """A processor with bfloat16 instructions, and nothing decided yet."""
    monkeypatch.delenv("MICROBUDGET_BF16", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return home


@pytest.mark.parametrize(("gain", "wins"), [(3.0, True), (1.1, False), (0.5, False)])
def test_set_up_decides_and_later_runs_do_not_measure(gain, wins, native, monkeypatch):
    assert not precision.fast_bf16("cpu")  # before set-up: float32
    monkeypatch.setattr(precision, "measure_gain", lambda: gain)
    assert precision.decide() is wins
    monkeypatch.setattr(precision, "measure_gain", lambda: pytest.fail("measured"))
    assert precision.fast_bf16("cpu") is precision.decide() is wins
    assert not precision.fast_bf16("mps")


def test_without_the_instructions_nothing_is_measured(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(precision, "measure_gain", lambda: pytest.fail("measured"))
    assert precision.decide() is False


def test_the_variable_overrides(native, monkeypatch):
    for asked, fast in (("1", True), ("on", True), ("0", False), ("no", False)):
        monkeypatch.setenv("MICROBUDGET_BF16", asked)
        assert precision.fast_bf16("cpu") is fast
    monkeypatch.setenv("MICROBUDGET_BF16", "measured")
    with pytest.raises(SettingsError, match="must be 1 or 0"):
        precision.fast_bf16("cpu")


@pytest.mark.parametrize("key", ["processor", "torch", "amx"])
def test_another_machine_decides_anew(key, native, monkeypatch):
    monkeypatch.setattr(precision, "measure_gain", lambda: 2.0)
    assert precision.decide()
    path = native / "cache" / "precision.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {key: "other"}))
    assert precision.recorded() is None and not precision.fast_bf16("cpu")
    assert precision.decide() and precision.recorded()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bf16": true}'])
def test_a_damaged_record_counts_as_none(content, native):
    (native / "cache").mkdir(parents=True)
    (native / "cache" / "precision.json").write_text(content)
    assert precision.recorded() is None


@pytest.mark.parametrize("gain", [3.0, 0.5])
def test_the_gain_is_a_ratio_of_times(gain, monkeypatch):
    """On a clock that a float32 product moves by ``gain``, a bfloat16 one by 1."""
    moves = itertools.cycle((0.0, gain, 0.0, 1.0))  # begin and end of each
    times = itertools.accumulate(moves)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(times))
    assert precision.measure_gain() == pytest.approx(gain)
