"""The loop: the same numbers however it is run; clear when it can't."""

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset

from microbudget.core.errors import TrainingError
from microbudget.data.batching import global_batches, share
from microbudget.training.loop import TrainConfig, _factor, fit

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"


def task(n=150):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 12, generator=generator)
    y = (x @ torch.randn(12, 4, generator=generator)).argmax(1)
    return x, y


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4)
    )


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def run(model=None, data=None, evaluate=None, loss=loss, **options):
    config = TrainConfig(**{"epochs": 3, "batch_size": 32, "lr": 1e-2} | options)
    model, data = model or net(), data or task()
    history = fit(model, data, loss, config, evaluate=evaluate)
    return model, history


def test_the_golden_loss_curve():
    """Ten steps; a change of these numbers is a change of the loop's meaning."""
    _, history = run(epochs=2, schedule="cosine", warmup=0.2)
    golden = json.loads(GOLDEN.read_text())
    assert history.losses == pytest.approx(golden, rel=1e-4)


def test_it_is_plain_adamw():
    """The same steps written out by hand."""
    x, y = task()
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    expected = []
    for rows in torch.randperm(len(x), generator=generator).split(32):
        value = loss(model, (x[rows], y[rows]))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(value.item())
    _, history = run(epochs=1, weight_decay=0.1)
    assert history.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_trained_model_is_freed_when_it_is_let_go(precision):
    """Without waiting for the garbage collector: dozens are trained in a notebook."""
    gc.disable()
    try:
        model, _ = run(precision=precision)
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_one_process_trains_in_bfloat16_twice_and_then_in_float32():
    model, (x, _) = net(), task()
    dtypes = []
    hook = model[0].register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    for _ in range(2):
        run(model, epochs=1, precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    hook.remove()
    assert model(x).dtype == torch.float32  # only autocast: the weights are float32
    run()


def test_a_data_set_and_tensors_give_the_same(tmp_path):
    class Examples(Dataset):
        x, y = task()

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i], self.y[i]

    _, tensors = run()
    _, examples = run(data=Examples())
    assert examples.losses == pytest.approx(tensors.losses, rel=1e-6)


def test_evaluate_is_called_after_each_epoch_in_eval_mode():
    scores = iter([0.1, 0.9])

    def evaluate(model):
        assert not model.training and not torch.is_grad_enabled()
        return {"accuracy": next(scores)}

    model, history = run(epochs=2, evaluate=evaluate)
    assert [epoch["accuracy"] for epoch in history.epochs] == [0.1, 0.9]
    without, _ = run(epochs=2)
    for a, b in zip(without.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": (torch.zeros(0, 12), torch.zeros(0))}, "no examples"),
        ({"data": (torch.zeros(3, 12), torch.zeros(2))}, "different lengths"),
        ({"schedule": "magic"}, "constant, linear, cosine"),
        ({"precision": "int3"}, "no, bf16"),
        ({"epochs": 0}, "at least 1"),
        ({"lr": 1e30}, "The loss is (nan|inf)"),
    ],
)
def test_what_cannot_be_trained_says_why(options, message):
    with pytest.raises(TrainingError, match=message):
        run(**options)


def test_nothing_to_train_and_nan_in_the_data():
    with pytest.raises(TrainingError, match="Nothing to train"):
        run(model=net().requires_grad_(False))
    x, y = task()
    x[77] = float("nan")
    with pytest.raises(TrainingError, match=r"The loss is nan at step \d"):
        run(data=(x, y))


@pytest.mark.gpu
def test_a_gpu_gives_the_losses_of_the_cpu(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    model, on_gpu = run()
    assert next(model.parameters()).is_cuda
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cpu")
    model, on_cpu = run()
    assert not next(model.parameters()).is_cuda
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=1e-2)


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 4), st.integers(0, 3))
def test_every_example_counts_once_and_equally(n, size, processes, epoch):
    whole = global_batches(n, size, 0, epoch)
    seen = torch.zeros(n)
    for rank in range(processes):
        shares = share(whole, processes, rank)
        for own, batch in zip(shares, whole, strict=True):
            for row in own.rows:  # what a row adds to the mean over processes
                seen[row] += own.weight / len(own.rows) / processes * len(batch)
    torch.testing.assert_close(seen, torch.ones(n))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_warm_up_and_stay_between_zero_and_one(schedule):
    factors = [_factor(schedule, step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(0 <= f <= 1 for f in factors)
    assert factors[100] == pytest.approx(1 if schedule == "constant" else 0, abs=1e-12)


def test_two_processes_give_the_losses_of_one(tmp_path):
    """`accelerate launch` with two CPU processes over gloo; 150 = 4·32 + 22.

    `--multi_gpu` picks the launcher that starts processes; `fit` asks for the CPU.
    """
    out = tmp_path / "two.json"
    script = Path(__file__).with_name("distributed_fit.py")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
        "--num_processes=2", "--main_process_port=0", "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--num_cpu_threads_per_process=1", str(script), str(out),
    ]  # fmt: skip
    environment = {**os.environ, "MICROBUDGET_DEVICE": "cpu"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(out.read_text())
    assert two["processes"] == 2
    model, one = run()
    assert two["losses"] == pytest.approx(one.losses, rel=1e-4)
    weights = [p.double().sum().item() for p in model.parameters()]
    assert two["weights"] == pytest.approx(weights, rel=1e-3, abs=1e-3)
    # batch-norm's statistics differ from process to process; results must not
    first, second = (json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1))
    assert first == second


# -- batches of similar length ------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=150),
    size=st.integers(1, 16),
    processes=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_buckets_hold_every_example_once(lengths, size, processes, epoch):
    n = len(lengths)
    seen = []
    for rank in range(processes):
        parts = share(global_batches(n, size, 0, epoch, lengths), processes, rank)
        seen += [row for part in parts if part.weight for row in part.rows]
        assert len(parts) == -(-n // size)
    assert sorted(seen) == list(range(n))


def test_buckets_are_of_similar_length_and_in_random_order():
    lengths = torch.randint(5, 100, (640,), generator=torch.Generator().manual_seed(0))
    padded = {}
    for name, given_lengths in (("random", None), ("bucketed", lengths.tolist())):
        batches = global_batches(640, 16, 0, 0, given_lengths)
        padded[name] = sum(16 * int(lengths[rows].max()) for rows in batches)
        means = torch.tensor([lengths[rows].float().mean() for rows in batches])
        assert not torch.equal(means, means.sort().values)
    assert padded["bucketed"] < 1.15 * int(lengths.sum())
    assert padded["random"] > 1.6 * int(lengths.sum())
    again = global_batches(640, 16, 0, 0, lengths.tolist())
    assert all(map(torch.equal, again, batches))
