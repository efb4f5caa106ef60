"""Timers, sizes, memory, energy and metrics: properties and bad input."""

import time

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microbudget.core.errors import EvaluationError
from microbudget.evaluation import memory, metrics, sizes
from microbudget.evaluation import timing as timers
from microbudget.evaluation.energy import EnergyMeter
from microbudget.evaluation.timing import Timing, measure_latency

labels = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60
)


def test_warm_up_is_not_counted():
    calls = []
    timing = measure_latency(lambda: calls.append(1), warmup=2, repeats=5)
    assert len(calls) == 7
    assert len(timing.seconds) == 5
    with pytest.raises(EvaluationError, match="at least 1"):
        measure_latency(lambda: None, repeats=0)


def test_the_first_slow_calls_do_not_show():
    pauses = iter([0.05, 0.05, 0, 0, 0])
    timing = measure_latency(lambda: time.sleep(next(pauses)), warmup=2, repeats=3)
    assert timing.median < 0.05


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_the_median_lies_within_the_spread(seconds):
    timing = Timing(tuple(seconds))
    low, high = timing.spread
    assert min(seconds) <= low <= timing.median <= high <= max(seconds)


@given(labels)
def test_metrics_agree_with_counting(pairs):
    true, predicted = map(np.array, zip(*pairs, strict=True))
    found = metrics.classification_report(true, predicted)
    matrix = metrics.confusion_matrix(true, predicted, 5)
    assert matrix.sum() == len(pairs)
    assert found["accuracy"] == pytest.approx(np.trace(matrix) / len(pairs))
    assert found["accuracy"] == metrics.accuracy(true, predicted)
    present = np.union1d(true, predicted)
    recall = [
        (predicted[true == k] == k).mean() if (true == k).any() else 0.0
        for k in present
    ]
    assert found["recall"] == pytest.approx(np.mean(recall))
    assert all(0 <= value <= 1 for value in found.values())


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
        (np.zeros(0, int), np.zeros(0, int), "nothing to evaluate"),
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


def test_a_difference_of_one_example_has_no_error():
    with pytest.raises(EvaluationError, match="equal length"):
        metrics.paired_difference([1], [0])


def test_the_standard_error_of_a_coin():
    assert metrics.standard_error(0.5, 100) == pytest.approx(0.05)
    with pytest.raises(EvaluationError):
        metrics.standard_error(0.5, 0)


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
    with pytest.raises(EvaluationError):
        sizes.bits_per_weight(1, 0)


def use(size):
    """Fill so many bytes, long enough for a thread to see them, and free them."""
    block = np.ones(size, dtype=np.uint8)
    time.sleep(0.05)
    del block


@pytest.mark.parametrize("kept_by", ["the system", "a thread that looks"])
def test_peak_memory_sees_what_is_gone_again(kept_by, tmp_path, monkeypatch):
    if kept_by == "a thread that looks":  # as where there is no /proc
        monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "file")
    elif not memory._reset():
        pytest.skip("the kernel keeps no mark here")
    else:
        monkeypatch.setattr(memory, "_INTERVAL", 60)  # a thread would see nothing

    with memory.peak_memory() as outer:
        use(200_000_000)
        with memory.peak_memory() as first:
            use(100_000_000)
        with memory.peak_memory() as second:
            use(1_000_000)
        with memory.peak_memory() as nothing:
            pass
    assert 90_000_000 < first.added < 150_000_000  # of its own, not of all before
    assert second.added < 50_000_000
    assert nothing.added < 5_000_000
    assert outer.added > 190_000_000


@pytest.mark.parametrize("kept_by", ["the system", "a thread that looks"])
def test_blocks_that_overlap_each_have_their_own_peak(kept_by, tmp_path, monkeypatch):
    """As blocks in two threads do: the first ends while the second goes on."""
    if kept_by == "a thread that looks":
        monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "file")
    first, second = memory.peak_memory(), memory.peak_memory()
    a = first.__enter__()
    use(100_000_000)
    b = second.__enter__()
    use(50_000_000)
    first.__exit__()
    use(150_000_000)
    second.__exit__()
    assert 90_000_000 < a.added < 140_000_000
    assert b.added > 140_000_000


def test_a_mark_that_cannot_be_reset_spoils_no_block_around(tmp_path, monkeypatch):
    if not memory._reset():
        pytest.skip("the kernel keeps no mark here")
    with memory.peak_memory() as outer:
        with monkeypatch.context() as patched:
            patched.setattr(memory, "_RESET", tmp_path / "absent" / "file")
            with memory.peak_memory() as inner:
                pass
        block = np.ones(100_000_000, dtype=np.uint8)
        del block
    assert (outer.exact, inner.exact) == (True, False)
    assert outer.added > 90_000_000


def test_energy_is_read_or_said_not_to_be(tmp_path):
    meter = EnergyMeter(tmp_path)
    assert meter.method == "not measured"
    assert meter.joules() is None
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("1000000000")
    (zone / "energy_uj").write_text("999000000")
    meter = EnergyMeter(tmp_path)
    assert meter.method == "RAPL (CPU package)"
    (zone / "energy_uj").write_text("2000000")  # the counter has started again
    assert meter.joules() == pytest.approx(3.0)


def test_freed_memory_goes_back_to_the_system():
    """Small blocks between kept ones: resident memory doesn't stay when they go."""
    from microbudget.evaluation.memory import release_memory

    kept, freed = [], []
    for _ in range(3000):
        freed.append(bytearray(60_000))
        kept.append(bytearray(100))
    before = psutil.Process().memory_info().rss
    freed.clear()
    release()
    assert psutil.Process().memory_info().rss <= before
    assert len(kept) == 3000


def test_functions_timed_in_turn_take_turns():
    """A quick one is called twice, and timed once: it must not feel who ran before."""
    calls = []

    def slow():
        calls.append("b")
        time.sleep(0.06)

    found = timers.measure_in_turn(
        {"a": lambda: calls.append("a"), "b": slow}, warmup=1, repeats=4
    )
    assert calls == ["a", "b"] + ["a", "a", "b"] * 4
    assert [len(timing.seconds) for timing in found.values()] == [4, 4]
    with pytest.raises(EvaluationError):
        timers.measure_in_turn({"a": lambda: None}, repeats=0)


def test_stacked_bars_add_up():
    from microbudget.plotting import figures

    axis = figures.stacked_bars(
        {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}, "MB", 10
    )
    ends = [patch.get_x() + patch.get_width() for patch in axis.patches]
    assert ends == [10, 30, 30, 70]
