"""The timing protocol; no test asserts how long something takes."""

import os
import time

import numpy as np
import pytest

from microbudget.core.errors import EvaluationError
from microbudget.evaluation import FreshProcess, measure_in_turn, speedup
from microbudget.evaluation.timing import Ratio, Timing


def waiting(seconds):
    return lambda: time.sleep(seconds)


def of_another_process(pid):
    assert os.getpid() != pid, "not a process of its own"
    return lambda: None


def failing():
    raise ValueError("no engine here")


def test_things_are_timed_in_turn_and_the_first_call_apart():
    order = []
    functions = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = measure_in_turn(functions, warmup=1, repeats=2)
    assert "".join(order).replace("aa", "a").replace("bb", "b") == "ababab"
    assert all(len(timing.seconds) == 2 for timing in found.values())
    assert all(timing.first > 0 for timing in found.values())


def test_a_heavy_engine_gets_a_process_of_its_own():
    jobs = {
        "here": lambda: None,
        "there": FreshProcess(of_another_process, {"pid": os.getpid()}),
        "waits": FreshProcess(waiting, {"seconds": 0.02}),
    }
    found = measure_in_turn(jobs, warmup=1, repeats=2)
    assert min(found["waits"].seconds) >= 0.02  # it was really called
    assert len(found["there"].seconds) == 2


def test_a_failure_there_is_told_here():
    with pytest.raises(EvaluationError, match="ValueError: no engine here"):
        measure_in_turn({"broken": FreshProcess(failing)})


def test_ratios_are_said_in_words():
    slow, fast = Timing((4.0, 6.0, 5.0)), Timing((2.0, 2.0, 2.5))
    assert speedup(slow, fast).words == "2.0 times as fast (95 % interval 2.0 to 3.0)"
    assert speedup(fast, slow).words == "2.0 times as slow (95 % interval 2.0 to 3.0)"
    assert "as far as these rounds can tell" in Ratio(1.0, 0.9, 1.2).words
    assert Ratio(1.0, 0.98, 1.01).words == "equally fast, to within 2%"
    assert str(slow) == "5000.0 ms (range 4000.0 to 6000.0, 3 calls)"


def test_the_interval_of_a_ratio_holds_the_true_median_95_times_in_100():
    draw, held = np.random.default_rng(0), 0
    for _ in range(400):
        fast = Timing(tuple(draw.lognormal(0, 0.2, 12)))
        slow = Timing(tuple(2 * draw.lognormal(0, 0.2, 12)))
        found = speedup(slow, fast)
        held += found.low <= 2 <= found.high
    assert 0.93 <= held / 400 <= 0.995
