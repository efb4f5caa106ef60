"""Where bfloat16 is used."""

import itertools

import pytest
import torch

from microbudget import precision
from microbudget.errors import SettingsError


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("faster", [True, False])
def test_bfloat16_is_used_where_it_is_faster(native, faster, monkeypatch):
    monkeypatch.delenv("MICROBUDGET_BF16", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(precision, "_bf16_is_faster", lambda: faster)
    assert precision.fast_bf16("cpu") == (native and faster)
    assert not precision.fast_bf16("mps")
    for asked, fast in (("1", True), ("on", True), ("0", False), ("no", False)):
        monkeypatch.setenv("MICROBUDGET_BF16", asked)
        assert precision.fast_bf16("cpu") is fast
    monkeypatch.setenv("MICROBUDGET_BF16", "measured")
    with pytest.raises(SettingsError, match="must be 1 or 0"):
        precision.fast_bf16("cpu")
    monkeypatch.delenv("MICROBUDGET_BF16")
    monkeypatch.setenv("LOCAL_RANK", "0")  # ranks that measured might disagree
    assert precision.fast_bf16("cpu") == native


@pytest.mark.parametrize(("gain", "wins"), [(3.0, True), (1.1, False), (0.5, False)])
def test_how_fast_bfloat16_is_gets_measured(gain, wins, monkeypatch):
    """On a clock that a float32 product moves by ``gain``, a bfloat16 one by 1."""
    moves = itertools.cycle((0.0, gain, 0.0, 1.0))  # begin and end of each
    times = itertools.accumulate(moves)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(times))
    assert precision._bf16_is_faster.__wrapped__() is wins
