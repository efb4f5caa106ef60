"""Feature caching and transfer learning, on small nets and on the real backbone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from microbudget.core import settings
from microbudget.core.errors import MicrobudgetError, TrainingError
from microbudget.data import flowers
from microbudget.models import mobilenet
from microbudget.models.vision import Preprocess
from microbudget.training import features, image_classifier, weights
from microbudget.training.image_classifier import HeadConfig, StagesConfig

SCALE = Preprocess((0.5,) * 3, (0.5,) * 3, 16)


def stages():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
    ).eval()


def pictures(n=21):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)


def blobs(classes=4, per_class=15, width=10, spread=0.5):
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), width, generator=generator)
    return centres[labels] + spread * noise, labels


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_BF16", "0")


@pytest.mark.parametrize("images", [1, 8, 21])  # eight are a batch on a processor
def test_cached_features_are_the_backbones(images):
    model, x = stages(), pictures(images)
    with torch.no_grad():
        direct = model(SCALE(x))
        mirrored = model(SCALE(x.flip(-1)))
    cached = features.extract(model, x, SCALE)
    torch.testing.assert_close(cached, direct, rtol=1e-4, atol=1e-5)
    flipped = features.extract(model, x, SCALE, flip=True)
    torch.testing.assert_close(flipped, mirrored, rtol=1e-4, atol=1e-5)
    assert not cached.requires_grad
    nn.Linear(2, 1)(cached.flatten(1)[:, :2]).sum().backward()  # can be trained on


def test_bf16_is_close(monkeypatch):
    model, x = stages(), pictures()
    exact = features.extract(model, x, SCALE)
    monkeypatch.setenv("MICROBUDGET_BF16", "1")
    low = features.extract(model, x, SCALE)
    assert low.dtype == torch.float32
    assert 0 < (low - exact).norm() / exact.norm() < 0.05


def test_a_picture_goes_through_the_backbone_once_and_few_at_a_time():
    seen = []

    class Counting(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.mean((2, 3))

    features.extract(Counting(), pictures(150), SCALE)
    assert sum(seen) == 150
    assert max(seen) <= 64


def test_extracting_leaves_the_backbone_as_it_was():
    model = stages()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    features.extract(model, pictures(), SCALE)
    assert before.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.no_grad()
def test_depths_are_pooled_and_of_unit_length():
    model = stages()
    describe = image_classifier.MultiStageFeatures(model, at=(2, 0))
    x = torch.randn(5, 3, 16, 16)
    vector = describe(x)
    assert vector.shape == (5, describe.width) == (5, 20)
    torch.testing.assert_close(vector[:, :8].norm(dim=1), torch.ones(5))
    torch.testing.assert_close(vector[:, 8:].norm(dim=1), torch.ones(5))
    plain = image_classifier.MultiStageFeatures(model, at=(2,), unit=False)
    torch.testing.assert_close(plain(x), model(x).mean((2, 3)))


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 8), st.floats(0.01, 100))
def test_standardised_features_have_mean_zero_and_one_scale(n, width, scale):
    torch.manual_seed(n)
    x = scale * torch.randn(2, n, width) + 3
    y = image_classifier.Standardise(x)(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(width), atol=1e-3, rtol=0)
    torch.testing.assert_close(y.pow(2).mean(), torch.tensor(1.0), atol=1e-2, rtol=0)
    x_ratio = x.var(dim=(0, 1)) / x.var(dim=(0, 1)).sum()
    y_ratio = y.var(dim=(0, 1)) / y.var(dim=(0, 1)).sum()
    torch.testing.assert_close(x_ratio, y_ratio, atol=1e-3, rtol=1e-2)


def test_a_head_is_trained():
    x, y = blobs()
    torch.manual_seed(0)
    head = nn.Linear(x.shape[1], 4)
    config = HeadConfig(weight_decay=0.01, lr=0.03, batch_size=16)
    image_classifier.train_head(head, x, y, config)
    assert image_classifier.score(head, x, y) > 0.9


def test_views_are_examples_in_training_and_votes_in_prediction():
    x, y = blobs()
    torch.manual_seed(0)
    head = nn.Linear(x.shape[1], 4)
    views = torch.stack([x, x + 0.1])
    history = image_classifier.train_head(
        head, views, y, HeadConfig(epochs=2, batch_size=30)
    )
    assert len(history.losses) == 2 * 2 * 60 // 30
    both = image_classifier.predict(head, views)
    each = [image_classifier.predict(head, view) for view in views]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_features_that_do_not_fit():
    x, y = blobs()
    head = nn.Linear(x.shape[1], 4)
    with pytest.raises(TrainingError, match="59 labels for 60 items"):
        image_classifier.train_head(head, x, y[:-1])
    with pytest.raises(TrainingError, match="NaN"):
        image_classifier.train_head(head, x / 0, y)


def test_fine_tuning_moves_the_tuned_part_alone():
    model, x = stages(), SCALE(pictures(40))
    y = (x[:, 0].mean((1, 2)) > x[:, 0].mean()).long()
    frozen, tuned = image_classifier.split(model, 1)
    kept = [p.clone() for p in frozen.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(tuned(frozen(x)), model(x), rtol=1e-3, atol=1e-5)
        maps = frozen(x)
    head = nn.Linear(12, 2)
    network = nn.Sequential(
        image_classifier.MultiStageFeatures(tuned, (1,), unit=False), head
    )
    before = [p.clone() for p in tuned.parameters()]
    history = image_classifier.fine_tune(
        network, maps, y, StagesConfig(lr=1e-2, head_lr=1e-2), head
    )
    assert history.losses[-1] < history.losses[0]
    moved = [
        not torch.equal(a, b) for a, b in zip(before, tuned.parameters(), strict=True)
    ]
    assert all(moved)
    for a, b in zip(kept, frozen.parameters(), strict=True):
        assert torch.equal(a, b)


def test_saved_and_loaded_is_the_same(tmp_path):
    model, other = stages(), stages()
    for parameter in model.parameters():
        parameter.data += 1
    path = weights.save(model, tmp_path / "m.safetensors", classes=["a", "b"])
    assert weights.load_(other, path) == {"classes": ["a", "b"]}
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), other(x))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_files_that_are_not_this_model(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(MicrobudgetError, match="There is no file"):
        weights.load_(stages(), path)
    weights.save(nn.Linear(2, 2), path)
    with pytest.raises(MicrobudgetError, match="does not hold this model"):
        weights.load_(stages(), path)
    weights.save(stages(), path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MicrobudgetError, match="can't be read as a model"):
        weights.load_(stages(), path)


def test_real_features_beat_chance_by_far(monkeypatch):
    """Five synthetic species: real weights, real images, seconds."""
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    data = flowers.load()
    train, val = (
        torch.nonzero(s.labels % 12 == 0).flatten() for s in (data.train, data.val)
    )
    model = mobilenet.mobilenet_v2(5)
    describe = image_classifier.MultiStageFeatures(model.features, at=(13, 17, 18))
    scale = mobilenet.preprocess(96)
    x = [
        features.extract(describe, data_split.images(96)[rows], scale)
        for data_split, rows in ((data.train, train), (data.val, val))
    ]
    y = [data.train.labels[train] // 12, data.val.labels[val] // 12]
    standardise = image_classifier.Standardise(x[0])
    torch.manual_seed(0)
    head = nn.Linear(describe.width, 5)
    image_classifier.train_head(head, standardise(x[0]), y[0])
    assert image_classifier.score(head, standardise(x[1]), y[1]) > 0.7


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(monkeypatch):
    model, x = stages(), pictures()
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cuda")
    on_gpu = features.extract(model, x, SCALE)
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cpu")
    on_cpu = features.extract(model, x, SCALE)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-2, atol=1e-3)


@pytest.mark.full
@pytest.mark.slow
def test_the_promised_accuracy_on_the_real_flowers(monkeypatch):
    """1,020 training images, 1,020 validation images."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import flowers_reference

    if flowers.load().generated:
        pytest.skip("needs MICROBUDGET_DATA with flowers-102")
    settings.seed_everything(0)
    found = {}
    bench = flowers_reference.Bench()
    flowers_reference.run_heads(
        bench, {}, lambda name, hits: found.update({name: hits})
    )
    assert found["mirrored in both"][0].float().mean() >= 0.87
