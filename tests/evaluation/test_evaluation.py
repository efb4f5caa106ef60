"""Timers, sizes, memory and metrics: properties, and what they refuse."""

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import EvaluationError
from microbudget.evaluation import memory, metrics, sizes, timing

labels = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60
)
durations = st.lists(st.floats(0, 100), min_size=1, max_size=9)


class Clock:
    """Stands still, but for what functions say they take."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def takes(self, seconds):
        self.now += seconds


@given(warmup=durations, measured=durations)
def test_a_timing_is_of_the_calls_after_the_warm_up(warmup, measured):
    clock, calls = Clock(), iter([*warmup, *measured])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time", clock)
        found = timing.measure_latency(
            lambda: clock.takes(next(calls)), warmup=len(warmup), repeats=len(measured)
        )
    assert found.seconds == pytest.approx(measured)
    assert found.median == pytest.approx(np.median(measured))


@given(labels)
def test_metrics_agree_with_counting(pairs):
    true, predicted = map(np.array, zip(*pairs, strict=True))
    matrix = metrics.confusion_matrix(true, predicted, 5)
    assert matrix.sum() == len(pairs)
    accuracy = metrics.accuracy(true, predicted)
    assert accuracy == pytest.approx(np.trace(matrix) / len(pairs))


@given(labels)
def test_confused_pairs_are_mistakes_in_falling_order(pairs):
    true, predicted = map(np.array, zip(*pairs, strict=True))
    matrix = metrics.confusion_matrix(true, predicted, 5)
    found = metrics.most_confused(matrix, 30)
    counts = [count for _, _, count in found]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == (true != predicted).sum()
    assert all(i != j and matrix[i, j] == n for i, j, n in found)


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (np.zeros(0, int), np.zeros(0, int), "not empty"),
        (np.array([1, 2]), np.array([1]), "equal length"),
        (np.array([[1]]), np.array([[1]]), "equal length"),
        (np.array([1, 0]), np.array([0.4, 0.6]), "class indices"),
        (torch.tensor([1, 0]), torch.tensor([[0.4, 0.6], [1, 2]]), "argmax"),
    ],
)
def test_metrics_refuse_what_has_no_meaning(true, predicted, message):
    with pytest.raises(EvaluationError, match=message):
        metrics.accuracy(true, predicted)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2))
def test_paired_differences(pairs):
    a, b = map(np.array, zip(*pairs, strict=True))
    mean, error = metrics.paired_difference(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert error >= 0
    assert metrics.paired_difference(b, a) == pytest.approx((-mean, error))
    assert metrics.paired_difference(a, a) == (0, 0)


def test_parameters_are_counted_once():
    layer = torch.nn.Linear(3, 3, bias=False)
    model = torch.nn.Sequential(layer, layer, torch.nn.BatchNorm1d(3))
    layer.requires_grad_(False)
    counted = sizes.count_parameters(model)
    assert (counted.total, counted.trainable) == (15, 6)
    assert "40.00 %" in str(counted)


def test_size_means_bytes_on_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"x" * 24)
    assert sizes.bytes_on_disk(tmp_path) == 1024
    assert sizes.bytes_on_disk(tmp_path / "a") == 1000
    assert sizes.bits_per_weight(1000, 1000) == 8
    with pytest.raises(EvaluationError, match="save the model first"):
        sizes.bytes_on_disk(tmp_path / "absent")


def resident() -> int:
    return psutil.Process().memory_info().rss


def use(size):
    """Fill so many bytes, and free them."""
    np.ones(size, dtype=np.uint8)


@pytest.mark.skipif(not memory._can_reset(), reason="the system keeps no mark here")
def test_peak_memory_sees_what_is_gone_again():
    before = resident()
    with memory.peak_memory() as outer:
        use(200_000_000)
        with memory.peak_memory() as first:
            use(100_000_000)
        with memory.peak_memory() as second:
            use(1_000_000)
    # of its own, not of all before
    assert 90_000_000 < first.highest - before < 150_000_000
    assert second.highest - before < 50_000_000
    assert outer.highest - before > 190_000_000


def test_peak_memory_where_the_system_keeps_no_mark(monkeypatch):
    monkeypatch.setattr(memory, "_can_reset", lambda: False)
    before = resident()
    with memory.peak_memory() as peak:
        kept = np.ones(100_000_000, dtype=np.uint8)
    assert 90_000_000 < peak.highest - before < 150_000_000 < 2 * kept.nbytes


@pytest.mark.skipif(not memory._can_reset(), reason="not Linux")
def test_freed_memory_goes_back_to_the_system():
    """Small blocks between kept ones stay resident after they are freed, until then."""
    kept, freed = [], []
    for _ in range(3000):
        freed.append(bytearray(60_000))
        kept.append(bytearray(100))
    before = resident()
    freed.clear()  # how much of it goes back by itself depends on what ran before
    memory.release_memory()
    assert resident() < before - 90_000_000
    assert len(kept) == 3000
