"""The loop: the same numbers however it is run; resumable; clear when it can't."""

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset

from microbudget.core.errors import TrainingError
from microbudget.data.batching import global_batches, share
from microbudget.training.checkpoints import fingerprint
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


def run(model=None, data=None, evaluate=None, checkpoint=None, loss=loss, **options):
    config = TrainConfig(**{"epochs": 3, "batch_size": 32, "lr": 1e-2} | options)
    model, data = model or net(), data or task()
    history = fit(model, data, loss, config, evaluate=evaluate, checkpoint=checkpoint)
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


def test_trained_again_it_is_computed_in_bfloat16_again():
    model = net()
    dtypes = []
    model[0].register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    for _ in range(2):
        fit(model, task(), loss, TrainConfig(epochs=1, batch_size=64, precision="bf16"))
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.parametrize("parts", [2, 3, 7, 40])
def test_accumulation_changes_no_number(parts):
    whole_model, whole = run()
    model, history = run(accumulate=parts)
    assert history.losses == pytest.approx(whole.losses, rel=1e-5)
    for a, b in zip(whole_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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


def test_bf16_trains_and_leaves_a_float32_model():
    model, history = run(precision="bf16")
    assert history.losses[-1] < history.losses[0]
    assert model(task()[0]).dtype == torch.float32
    run()  # and float32 is still possible in the same process


def test_resuming_gives_the_losses_of_an_uninterrupted_run(tmp_path):
    whole_model, whole = run(model=net(dropout=0.3), epochs=6, schedule="linear")

    class Killed(Exception):
        pass

    def killed_in_epoch_four(model, batch, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] > 3 * 5 + 2:
            raise Killed
        return loss(model, batch)

    options = {"epochs": 6, "schedule": "linear", "checkpoint": tmp_path / "run.pt"}
    with pytest.raises(Killed):
        run(model=net(dropout=0.3), loss=killed_in_epoch_four, **options)
    model, history = run(model=net(dropout=0.3), **options)
    assert history.resumed_from_epoch == 3
    assert history.losses == pytest.approx(whole.losses, rel=1e-6)
    for a, b in zip(whole_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert os.listdir(tmp_path) == ["run.pt"]  # no temporary file stays


def test_a_finished_run_is_not_run_again(tmp_path):
    first, _ = run(checkpoint=tmp_path / "run.pt")
    model, history = run(loss=None, checkpoint=tmp_path / "run.pt")
    assert history.resumed_from_epoch == 3
    for a, b in zip(first.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(checkpoint=tmp_path / "run.pt")
    with pytest.raises(TrainingError, match="written by another run"):
        run(checkpoint=tmp_path / "run.pt", lr=1e-3)
    x, y = task()
    for other in ({"data": (x + 1, y)}, {"optimizer": "sgd"}, {"precision": "bf16"}):
        with pytest.raises(TrainingError, match="written by another run"):
            run(checkpoint=tmp_path / "run.pt", **other)
    (tmp_path / "run.pt").write_bytes(b"PK half a file")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        run(checkpoint=tmp_path / "run.pt")


# every setting, and another value; the second group may differ between two runs
MATTERS = {
    "epochs": 4, "batch_size": 16, "lr": 0.5, "weight_decay": 0.1, "optimizer": "sgd",
    "schedule": "cosine", "warmup": 0.5, "precision": "bf16", "max_grad_norm": 1.0,
    "lengths": [1] * 150, "monitor": "loss", "patience": 2, "seed": 1,
}  # fmt: skip
DOES_NOT = {"accumulate": 2, "description": "another bar"}


def test_a_checkpoint_knows_every_setting_that_changes_the_numbers():
    base = {"epochs": 3, "monitor": "accuracy"}

    def of(**options):
        config, model = TrainConfig(**base | options), net()
        kind = torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW
        return fingerprint(model, task(), kind(model.parameters()), config)

    assert {f.name for f in fields(TrainConfig)} == MATTERS.keys() | DOES_NOT.keys()
    for name, value in MATTERS.items():
        assert of(**{name: value}) != of(), name
    for name, value in DOES_NOT.items():
        assert of(**{name: value}) == of(), name


def test_a_checkpoint_knows_the_settings_of_an_optimizer_of_ones_own():
    def of(momentum):
        model, config = net(), TrainConfig(epochs=1, optimizer=torch.optim.SGD)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        return fingerprint(model, task(), optimizer, config)

    assert of(0.5) == of(0.5) != of(0.9)


def test_early_stopping_keeps_the_best_weights():
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    kept = {}

    def evaluate(model):
        assert not model.training
        score = next(scores)
        kept[score] = [p.clone() for p in model.parameters()]
        return {"accuracy": score}

    model, history = run(epochs=5, evaluate=evaluate, monitor="accuracy", patience=2)
    assert history.stopped_early
    assert history.best_epoch == 2
    assert len(history.epochs) == 4
    for a, b in zip(kept[0.9], model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": (torch.zeros(0, 12), torch.zeros(0))}, "no examples"),
        ({"data": (torch.zeros(3, 12), torch.zeros(2))}, "different lengths"),
        ({"schedule": "magic"}, "constant, linear, cosine"),
        ({"precision": "int3"}, "no, bf16, fp16"),
        ({"optimizer": "magic"}, "adamw, sgd"),
        ({"epochs": 0}, "at least 1"),
        ({"patience": 1}, "patience needs monitor"),
        ({"evaluate": lambda m: {"f1": float("nan")}, "monitor": "f1"}, "f1 is nan"),
        ({"evaluate": lambda m: {"f1": 1.0}, "monitor": "accuracy"}, "not among"),
        ({"lr": 1e30}, "The loss is (nan|inf)"),
    ],
)
def test_what_cannot_be_trained_says_why(options, message):
    with pytest.raises(TrainingError, match=message):
        run(**options)


def test_a_frozen_model_says_so():
    model = net().requires_grad_(False)
    with pytest.raises(TrainingError, match="Nothing to train"):
        run(model=model)


def test_nan_in_the_data_is_found():
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


@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4),
    st.integers(0, 3),
)  # fmt: skip
def test_every_example_counts_once_and_equally(n, size, accumulate, processes, epoch):
    whole = global_batches(n, size, 0, epoch)
    plans = [share(whole, accumulate, processes, rank) for rank in range(processes)]
    seen = torch.zeros(n)
    batches = -(-n // size)
    assert {sum(part.last for part in parts) for parts in plans} == {batches}
    for parts in plans:
        batch = 0
        for part in parts:
            examples = min(size, n - batch * size)
            for row in part.rows:  # what a row adds to the mean over processes
                seen[row] += part.weight / len(part.rows) / processes * examples
            batch += part.last
    torch.testing.assert_close(seen, torch.ones(n))


def test_the_best_loss_is_the_lowest():
    values = iter([3.0, 1.0, 2.0])
    options = {"evaluate": lambda m: {"loss": next(values)}, "monitor": "loss"}
    assert run(**options)[1].best_epoch == 2


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
    # batch-norm differs from process to process; decisions and results must not
    first, second = (json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert first["stopped_early"]


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
        parts = share(global_batches(n, size, 0, epoch, lengths), 1, processes, rank)
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


def test_lengths_must_fit_the_data():
    data = (torch.randn(6, 3), torch.randn(6, 1))
    with pytest.raises(TrainingError, match="5 lengths for 6 examples"):
        fit(nn.Linear(3, 1), data, loss, TrainConfig(epochs=1, lengths=[1] * 5))
