"""Methods of fine-tuning: what is trained, parity with peft, files, bad input."""

import re

import peft
import pytest
import torch
from sentences import classifier, sentences
from torch.nn import functional as F

from microbudget.core import checkpoint
from microbudget.core.errors import MicrobudgetError, TrainingError
from microbudget.finetuning import methods, saving
from microbudget.models import bert
from microbudget.training.text_classifier import (
    FinetuneConfig,
    predict,
    train,
)

D, INNER, LAYERS, HEAD = 48, 96, 2, 2 * 48 + 2
METHODS = {
    "full": methods.FullConfig(),
    "top_layers": methods.TopLayersConfig(),
    "head_only": methods.HeadOnlyConfig(),
    "bitfit": methods.BitFitConfig(),
    "ia3": peft.IA3Config(
        target_modules=r".*(key|value|layer\.\d+\.output\.dense)",
        feedforward_modules=r".*layer\.\d+\.output\.dense",
    ),
    "bottleneck": methods.BottleneckConfig(),
    "lora": peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]),
}
BESIDE = ("ia3", "bottleneck", "lora")  # a model can hold several of these


def batch():
    data = sentences()
    return data.collate([data[i] for i in range(8)])


def loss_of(model):
    ids, mask, labels = batch()
    return F.cross_entropy(model(ids, mask), labels)


def logits(model):
    ids, mask, _ = batch()
    with torch.inference_mode():
        return model.eval()(ids, mask)


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def apply(method, model=None, name="task"):
    return methods.apply_(model or classifier(), METHODS[method], name)


def quick(model, **options):
    options = {"lr": 5e-3, "epochs": 2, "batch_size": 8} | options
    return train(model, sentences(), FinetuneConfig(**options))


LAYER = 4 * (D * D + D) + 2 * D * INNER + D + INNER + 4 * D
COUNTS = {
    "full": sum(p.numel() for p in classifier().encoder.parameters()),
    "head_only": 0,
    "top_layers": 2 * LAYER,
    "bitfit": LAYERS * (4 * D + INNER + D + 2 * D) + D,  # and the embeddings' norm's
    "ia3": LAYERS * (2 * D + INNER),  # Liu et al. 2022: d_k + d_v + d_ff a layer
    "bottleneck": LAYERS * 2 * (2 * D * 32 + 32 + D),
    "lora": LAYERS * 2 * 8 * 2 * D,
}


@pytest.mark.parametrize("method", COUNTS)
def test_exactly_the_methods_parameters_are_trained(method):
    model = apply(method)
    free = trainable(model)
    assert sum(p.numel() for p in free.values()) == COUNTS[method] + HEAD
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    quick(model)
    for name, parameter in model.named_parameters():
        if name not in free:
            assert torch.equal(parameter, before[name]), name
    moved = [n for n in free if not torch.equal(free[n], before[n])]
    assert len(moved) == len(free)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    model = apply(method)
    history = quick(
        model, epochs=25, lr=2e-3 if method in ("full", "top_layers") else 2e-2
    )
    assert history.losses[-1] < 0.85 * history.losses[0]


def test_lora_is_w_plus_ba():
    """Hu et al., equation 3, by hand: the same output and gradients as peft's."""
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["query"])
    model = methods.apply_(classifier(), config)
    layer = model.encoder.encoder.layer[0].attention.self.query
    torch.nn.init.normal_(layer.lora_B["task"].weight, std=0.1)
    x = torch.randn(3, D)
    a = layer.lora_A["task"].weight.detach().clone().requires_grad_()
    b = layer.lora_B["task"].weight.detach().clone().requires_grad_()
    w, bias = layer.base_layer.weight, layer.base_layer.bias
    ours = F.linear(x, w, bias) + 12 / 4 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), ours)
    layer(x).square().sum().backward()
    ours.square().sum().backward()
    torch.testing.assert_close(layer.lora_A["task"].weight.grad, a.grad)
    torch.testing.assert_close(layer.lora_B["task"].weight.grad, b.grad)


def test_ia3_scales_keys_values_and_the_inner_activations():
    """Liu et al., section 3.3, by hand on one layer."""
    model = classifier(layers=1)
    plain = classifier(layers=1)
    apply("ia3", model)
    layer, base = model.encoder.encoder.layer[0], plain.encoder.encoder.layer[0]
    for parameter in trainable(model).values():
        if parameter.ndim == 2 and 1 in parameter.shape:
            torch.nn.init.uniform_(parameter, 0.5, 2)
    with torch.no_grad():
        for name in ("key", "value"):
            scale = getattr(layer.attention.self, name).ia3_l["task"].flatten()
            linear = getattr(base.attention.self, name)
            linear.weight.mul_(scale[:, None])
            linear.bias.mul_(scale)
        scale = layer.output.dense.ia3_l["task"].flatten()
        base.output.dense.weight.mul_(scale[None, :])
    assert not isinstance(layer.attention.output.dense, peft.tuners.ia3.IA3Layer)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_equals_unmerged_and_nothing_of_it_is_left(method):
    model = classifier()
    modules = [type(m) for m in classifier().modules()]
    apply(method, model)
    quick(model)
    before = logits(model)
    methods.merge_(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert [type(m) for m in model.modules()] == modules


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_answers_the_same(method, tmp_path):
    model = apply(method)
    quick(model)
    path = saving.save(model, tmp_path / "m.safetensors", classes=["no", "yes"])
    other = classifier()
    assert saving.load_(other, path) == {"classes": ["no", "yes"]}
    assert torch.equal(logits(other), logits(model))
    own = sum(p.nbytes for p in trainable(model).values())
    assert own < path.stat().st_size < own + 20_000


def trained(method, name, head, classes=2, seed=0):
    """A model with one trained part, whose name and head may differ."""
    model = classifier()
    model.heads.clear()
    torch.manual_seed(seed)
    model.add_head(head, classes)
    apply(method, model, name)
    quick(model, seed=seed)
    return model


@pytest.mark.parametrize("method", BESIDE)
def test_two_tasks_on_one_frozen_base(method, tmp_path):
    """Loaded side by side and switched; the base's own weights never change."""
    wanted = {"mood": ("first", 2), "kind": ("second", 3)}
    paths, expected = {}, {}
    for seed, (name, (head, classes)) in enumerate(wanted.items()):
        model = trained(method, name, head, classes, seed)
        paths[name], expected[name] = tmp_path / name, logits(model)
        saving.save(model, paths[name])
    shared = classifier()
    base = {n: p.clone() for n, p in shared.encoder.named_parameters()}
    for path in paths.values():
        saving.load_(shared, path)
    for name in ("mood", "kind", "mood"):
        methods.activate_(shared, name)
        assert torch.equal(logits(shared), expected[name])
        # only this task's parameters are trainable, and it is saved as itself
        assert set(trainable(shared)) == set(shared.applied[name].parameters)
        again = classifier()
        saving.load_(again, saving.save(shared, tmp_path / "again"))
        assert torch.equal(logits(again), expected[name])
    left = {
        re.sub(r"\.(base_layer|inner)\b", "", n): p
        for n, p in shared.encoder.named_parameters()
    }
    assert all(torch.equal(left[n], base[n]) for n in base)
    with pytest.raises(MicrobudgetError, match="no 'other' here"):
        methods.activate_(shared, "other")


@pytest.mark.parametrize("method", METHODS)
def test_a_second_task_never_overwrites_the_first(method, tmp_path):
    """Same name, or weights that are the base's own: refused, and nothing changes."""
    for head in ("a", "b"):
        saving.save(trained(method, "task", head), tmp_path / head)
    shared = classifier()
    saving.load_(shared, tmp_path / "a")
    before = logits(shared)
    with pytest.raises(TrainingError, match="fresh copy of the base"):
        saving.load_(shared, tmp_path / "b")
    assert torch.equal(logits(shared), before)


def test_a_head_that_is_taken_or_of_another_size(tmp_path):
    small = saving.save(trained("lora", "a", "head", 2), tmp_path / "a")
    large = saving.save(trained("lora", "b", "head", 3), tmp_path / "b")
    other = saving.save(trained("lora", "c", "head", 2), tmp_path / "c")
    shared = classifier()
    saving.load_(shared, small)
    with pytest.raises(TrainingError, match="of 3 classes, this model one of 2"):
        saving.load_(shared, large)
    with pytest.raises(TrainingError, match="belongs to 'a'"):
        saving.load_(shared, other)


def test_one_method_a_model():
    for first, second in (("lora", "ia3"), ("bottleneck", "bitfit"), ("lora", "full")):
        model = apply(first)
        before = set(trainable(model))
        with pytest.raises(TrainingError, match="was applied to this model already"):
            apply(second, model)
        assert set(trainable(model)) == before


BAD_CONFIGS = [
    (peft.LoraConfig(r=0, target_modules=["query"]), "positive integer"),
    (peft.LoraConfig(target_modules=["no_such_layer"]), "no_such_layer.* not found"),
    (methods.TopLayersConfig(3), "this model has 2"),
    (methods.BottleneckConfig(0), "width of at least 1"),
]


def test_a_method_that_fails_leaves_the_model_as_it_was():
    model = classifier()
    model.requires_grad_(True)
    names = [name for name, _ in model.named_modules()]
    for config, says in BAD_CONFIGS:
        with pytest.raises(TrainingError, match=says):
            methods.apply_(model, config)
        assert all(p.requires_grad for p in model.parameters())
        assert [name for name, _ in model.named_modules()] == names
        assert not methods.applied(model)
    with pytest.raises(TrainingError, match="no LoRA"):
        methods.merge_(model)


def test_merged_there_is_nothing_left_to_save(tmp_path):
    model = trained("lora", "a", "a")
    path = saving.save(model, tmp_path / "a")
    methods.merge_(model)
    with pytest.raises(TrainingError, match="nothing to save"):
        saving.save(model, tmp_path / "b")
    with pytest.raises(TrainingError, match="fits its own base"):
        saving.load_(model, path)
    other = methods.merge_(trained("lora", "a", "a", seed=1))
    assert other.base_id != model.base_id  # another adapter made it another base
    two = trained("lora", "a", "a")
    apply("lora", two, "b")
    with pytest.raises(TrainingError, match="keeps one only"):
        methods.merge_(two)


def test_an_adapter_for_another_base_is_refused(tmp_path):
    model = apply("lora")
    path = saving.save(model, tmp_path / "a")
    other = classifier()
    other.base_id = "bigger-bert:2"
    with pytest.raises(TrainingError, match=r"tiny-bert:1, this is bigger-bert:2"):
        saving.load_(other, path)


def test_nothing_to_save_or_to_load(tmp_path):
    with pytest.raises(TrainingError, match="apply a method"):
        saving.save(classifier(), tmp_path / "a")
    checkpoint.save_tensors(tmp_path / "a", {"w": torch.zeros(1)})
    with pytest.raises(TrainingError, match="wasn't written by"):
        saving.load_(classifier(), tmp_path / "a")


@pytest.mark.parametrize("method", METHODS)
def test_a_file_that_does_not_fit_is_refused_before_the_model_is_changed(
    method, tmp_path
):
    saving.save(trained(method, "a", "another"), tmp_path / "a")
    tensors, metadata = checkpoint.load_tensors(tmp_path / "a")
    name = sorted(tensors)[0]
    for damage in ("missing", "extra", "shape"):
        damaged = dict(tensors)
        if damage == "missing":
            del damaged[name]
        elif damage == "extra":
            damaged["extra.weight"] = torch.zeros(1)
        else:
            damaged[name] = torch.zeros(3, 3)
        checkpoint.save_tensors(tmp_path / "b", damaged, **metadata)
        model = classifier()
        before = {n: p.clone() for n, p in model.named_parameters()}
        answers, may_move = logits(model), set(trainable(model))
        state = torch.get_rng_state()
        with pytest.raises(TrainingError, match="b doesn't fit this model"):
            saving.load_(model, tmp_path / "b")
        assert torch.equal(torch.get_rng_state(), state)
        after = dict(model.named_parameters())
        assert after.keys() == before.keys()
        assert all(torch.equal(after[n], before[n]) for n in before)
        assert torch.equal(logits(model), answers)
        assert set(trainable(model)) == may_move
        assert set(model.heads) == {"task"} and not methods.applied(model)


def test_labels_the_head_has_no_class_for():
    data = sentences()
    data.labels = data.labels + 1
    with pytest.raises(TrainingError, match="but the head 'task' has 2 classes"):
        train(classifier(), data, FinetuneConfig(lr=1e-3))


def test_predictions_come_in_the_sentences_order():
    model, data = classifier(), sentences(5)
    one_by_one = torch.cat(
        [model(*data.collate([data[i]])[:2]).detach() for i in range(len(data))]
    )
    found = predict(model, data, batch_size=3, precision="no")
    torch.testing.assert_close(found, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def minilm():
    return bert.load()


def test_a_four_bit_base(minilm):
    """QLoRA: the adapter learns in float32, the base doesn't move and isn't merged."""
    model = minilm.classifier(2, four_bit=True)
    with pytest.raises(TrainingError, match="use LoRA"):
        apply("full", model)
    apply("lora", model)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    packed = [p.clone() for p in model.parameters() if hasattr(p, "quant_state")]
    losses = quick(model, epochs=4, lr=1e-2).losses
    assert losses[-1] < losses[0]
    after = [p for p in model.parameters() if hasattr(p, "quant_state")]
    assert all(torch.equal(a, b) for a, b in zip(packed, after, strict=True))
    with pytest.raises(TrainingError, match="full precision"):
        methods.merge_(model)


def test_gradients_in_four_bits_are_right_after_an_evaluation_too(minilm):
    """bitsandbytes rearranges weights when it evaluates; not ours."""
    model, data = minilm.classifier(2, four_bit=True), sentences()
    apply("lora", model)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids, mask, labels = batch()

    def gradients():
        model.train().zero_grad()
        F.cross_entropy(model(ids, mask), labels).backward()
        return {n: p.grad.clone() for n, p in trainable(model).items()}

    before = gradients()
    predict(model, data, precision="no")
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ten steps, torch 2.13.0, transformers 5.23.0, peft 0.21.2 on an x86-64 CPU
GOLDEN = [0.7416, 0.6541, 0.5981, 0.5388, 0.482, 0.452, 0.375, 0.3766, 0.3011, 0.327]


def test_the_golden_loss_curve(minilm, monkeypatch):
    """LoRA on the real MiniLM: a change of these numbers is a change of the method."""
    monkeypatch.setenv("MICROBUDGET_BF16", "0")
    model = minilm.classifier(2)
    apply("lora", model)
    losses = quick(model, epochs=5, lr=2e-3).losses
    assert losses == pytest.approx(GOLDEN, abs=5e-3)
