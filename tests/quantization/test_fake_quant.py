"""Fake quantization, and the int8 kernels that make it real."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from microbudget.core import onednn
from microbudget.core.errors import MicrobudgetError, QuantizationError
from microbudget.models.mobilenet import SamePadConv2d
from microbudget.models.vision import fold_batchnorm
from microbudget.quantization import checkpoint, fake_quant, kernels, mapping, observers
from microbudget.training.loop import TrainConfig, fit

has_int8 = pytest.mark.skipif(
    not onednn.available(), reason="no int8 convolution in this torch"
)


def small_net(activation=nn.ReLU6):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(SamePadConv2d(3, 8, 3, stride=2, bias=True), activation()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), activation()),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def images(n=6, seed=1):
    return torch.randn(n, 3, 12, 13, generator=torch.Generator().manual_seed(seed))


def test_more_bits_come_nearer_and_the_original_is_untouched():
    net, x = small_net(), images()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    distances = []
    for bits in (3, 5, 8):
        other = fake_quant.fake_quantize(net, bits, bits)
        fake_quant.calibrate_(other, [x])
        distances.append(float((other(x) - net(x)).detach().norm()))
    assert distances[0] > distances[1] > distances[2] > 0
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_zero_bits_are_floats_and_only_static_ranges_need_calibration():
    net, x = small_net(), images()
    torch.testing.assert_close(fake_quant.fake_quantize(net, 0, 0)(x), net(x))
    assert torch.isfinite(fake_quant.fake_quantize(net, dynamic=True)(x)).all()
    with pytest.raises(QuantizationError, match="calibrate"):
        fake_quant.fake_quantize(net)(x)


def test_fake_quantization_is_the_layer_on_rounded_numbers():
    torch.manual_seed(0)
    linear, x = nn.Linear(7, 3), torch.randn(5, 7)
    model = fake_quant.fake_quantize(nn.Sequential(linear))
    fake_quant.calibrate_(model, [x])
    (part,) = fake_quant.fake_quantized_layers(model).values()
    rounded = mapping.weight_mapping(linear.weight).fake_quantize(linear.weight)
    wanted = nn.functional.linear(
        part.input_mapping().fake_quantize(x), rounded, linear.bias
    )
    torch.testing.assert_close(model(x), wanted)


def test_quantization_aware_training_recovers_what_rounding_lost():
    net, x = small_net(nn.ReLU), images(64)
    labels = net(x).argmax(1)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = fake_quant.calibrate_(fake_quant.fake_quantize(net, 2, 8), [x])
    before = float(loss(model, (x, labels)).detach())
    fit(model, (x, labels), loss, TrainConfig(epochs=15, batch_size=16, lr=5e-3))
    assert float(loss(model, (x, labels)).detach()) < before
    for part in fake_quant.fake_quantized_layers(model).values():
        codes = part.weight_mapping().quantize(part.layer.weight)
        assert set(codes.unique().tolist()) <= {-1, 0, 1}


def test_mixed_precision_by_name():
    net = small_net()
    names = list(fake_quant.fake_quantized_layers(fake_quant.fake_quantize(net)))
    bits = dict.fromkeys(names, 8) | {names[0]: 3}
    mixed = fake_quant.fake_quantized_layers(fake_quant.fake_quantize(net, bits))
    assert [part.bits for part in mixed.values()] == [3, 8, 8, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fake_quant.fake_quantize(nn.Sequential(nn.ReLU())),
        lambda: fake_quant.fake_quantize(small_net(), {"nobody": 8}),
        lambda: fake_quant.calibrate_(fake_quant.fake_quantize(small_net()), []),
        lambda: fake_quant.calibrate_(
            fake_quant.fake_quantize(small_net()), [images()], "guess"
        ),
    ],
)
def test_what_cant_be_fake_quantized_is_said(wrong):
    with pytest.raises(QuantizationError):
        wrong()


def test_a_failed_calibration_leaves_nothing_behind():
    model = fake_quant.fake_quantize(small_net())
    with pytest.raises(RuntimeError):
        fake_quant.calibrate_(model, [torch.zeros(1, 5, 4, 4)])
    assert all(
        part.calibration is None
        for part in fake_quant.fake_quantized_layers(model).values()
    )


@has_int8
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_the_kernels_compute_what_was_fake_quantized(activation):
    net, x = small_net(activation), images()
    bits = 8 if onednn.adds_exactly() else 7
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net, bits), [x])
    real = kernels.to_int8(model)
    layers = [m for m in real.modules() if isinstance(m, kernels.Int8Layer)]
    assert len(layers) == 4
    assert [m.output_grid is not None for m in layers] == [True, True, False, False]
    assert not any(isinstance(m, activation) for m in real.modules())
    with torch.no_grad():
        wanted, found = model(x), real(x)
    # a product that falls on a tie may round the other way: a step of the last input
    step = float(fake_quant.fake_quantized_layers(model)["5"].input_mapping().scale)
    assert (found - wanted).abs().max() < 4 * step
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05)


@has_int8
def test_a_chain_is_cut_where_something_else_stands():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    )
    x = images()
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net.eval(), 7), [x])
    real = kernels.to_int8(model)
    with torch.no_grad():
        torch.testing.assert_close(real(x), model(x), rtol=0.1, atol=0.05)
    assert isinstance(real[1], nn.ReLU)


@has_int8
def test_only_calibrated_eight_bit_inputs_become_real():
    with pytest.raises(QuantizationError, match="calibrate"):
        kernels.to_int8(fake_quant.fake_quantize(small_net()))
    model = fake_quant.fake_quantize(small_net(), 8, 4)
    with pytest.raises(QuantizationError, match="8-bit inputs"):
        kernels.to_int8(fake_quant.calibrate_(model, [images()]))


def saved(tmp_path, bits=8):
    net, x = small_net(), images()
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net, bits), [x])
    return net, model, checkpoint.save(model, tmp_path / "net.safetensors")


@pytest.mark.parametrize("bits", [8, 7, 3])
def test_a_file_of_codes_gives_the_same_answers(tmp_path, bits):
    _, model, path = saved(tmp_path, bits)
    again = checkpoint.load(path, small_net())
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
    with safe_open(path, "pt") as file:
        assert file.get_tensor("5.codes").dtype == torch.int8
    for part in fake_quant.fake_quantized_layers(again).values():
        assert part.bits == bits


def test_a_file_that_isnt_one_is_said(tmp_path):
    net, _, path = saved(tmp_path)
    with pytest.raises(QuantizationError, match="another architecture"):
        wider = small_net()
        wider[5] = nn.Linear(6, 9)
        checkpoint.load(path, wider)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MicrobudgetError, match="Save it again"):
        checkpoint.load(path, net)
    with pytest.raises(QuantizationError, match="fake_quantize"):
        checkpoint.save(net, tmp_path / "floats.safetensors")


@pytest.mark.gpu
def test_a_gpu_computes_the_same():
    net, x = small_net(), images()
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net), [x])
    there = fake_quant.calibrate_(
        fake_quant.fake_quantize(net.cuda()), [x]
    )  # data comes to it
    with torch.no_grad():
        found = there(x.cuda()).cpu()
        torch.testing.assert_close(found, model.cuda()(x.cuda()).cpu())
        torch.testing.assert_close(found, model.cpu()(x), rtol=1e-2, atol=1e-2)


def test_corrected_biases_leave_no_shift_in_the_mean():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)).eval()
    x = images(32) + 1
    shifts = {}
    for correct in (False, True):
        model = fake_quant.fake_quantize(net, 3, input_bits=0)
        fake_quant.calibrate_(model, x.split(16), correct_bias=correct)
        with torch.no_grad():
            shifts[correct] = (model(x) - net(x)).mean((0, 2, 3)).abs().max()
    assert shifts[True] < 1e-5 < 1e-3 < shifts[False]


def test_a_file_of_a_folded_network_is_refused_by_an_unfolded_one(tmp_path):
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    unfolded = nn.Sequential(conv, norm).eval()
    model = fake_quant.fake_quantize(fold_batchnorm(unfolded))
    path = checkpoint.save(
        fake_quant.calibrate_(model, [images()]), tmp_path / "net.safetensors"
    )
    with pytest.raises(QuantizationError, match="fold"):
        checkpoint.load(path, unfolded)


def test_settings_of_every_layer_come_back(tmp_path):
    model = fake_quant.fake_quantize(small_net(), 8, 8)
    own = fake_quant.fake_quantized_layers(model)
    own["2"].input_bits, own["5"].per_channel = 0, False
    fake_quant.calibrate_(model, [images()])
    path = checkpoint.save(model, tmp_path / "net.safetensors")
    again = fake_quant.fake_quantized_layers(checkpoint.load(path, small_net()))
    assert [p.input_bits for p in again.values()] == [8, 8, 0, 8]
    assert [p.per_channel for p in again.values()] == [True, True, True, False]


@pytest.mark.parametrize("method", observers.OBSERVERS)
def test_calibration_finds_what_the_method_finds_in_all_numbers(method):
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    model = fake_quant.fake_quantize(nn.Sequential(nn.Linear(7, 2)))
    fake_quant.calibrate_(model, x.split(300), method)
    (part,) = fake_quant.fake_quantized_layers(model).values()
    low, high = observers.OBSERVERS[method](x)
    assert float(part.low) == pytest.approx(low)
    assert float(part.high) == pytest.approx(high)


def test_of_many_numbers_all_columns_are_sampled_and_the_ends_kept():
    x = torch.arange(32.0).expand(8, 4, 64, 32).clone()  # a value a column
    x[0, 0, 0, 0] = -100
    seen = fake_quant._Calibration(False)
    seen.add(x)
    assert float(seen.low) == -100
    assert len(seen.samples[0]) == fake_quant._SAMPLES
    assert len(seen.samples[0][seen.samples[0] >= 0].unique()) == 32


def test_biases_of_tokens_are_corrected_over_tokens_and_only_once():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 9)), torch.randn(10, 4, 6) + 1
    model = fake_quant.fake_quantize(net, 3, input_bits=0)
    fake_quant.calibrate_(model, [x[:7], x[7:]], correct_bias=True)  # unequal batches
    with torch.no_grad():
        assert (model(x) - net(x)).mean((0, 1)).abs().max() < 1e-5
    with pytest.raises(QuantizationError, match="once"):
        fake_quant.calibrate_(model, [x], correct_bias=True)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@has_int8
def test_a_sequential_with_a_forward_of_its_own_keeps_it():
    torch.manual_seed(0)
    net, x = Residual(nn.Conv2d(3, 3, 1)).eval(), images()
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net, 7), [x])
    with torch.no_grad():
        found = kernels.to_int8(model)(x)
    torch.testing.assert_close(found, model(x).detach(), rtol=0.1, atol=0.05)


@has_int8
def test_int8_layers_of_tokens_keep_their_shape():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 9)).eval(), torch.randn(2, 5, 6)
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net, 7), [x])
    with torch.no_grad():
        found = kernels.to_int8(model)(x)
    torch.testing.assert_close(found, model(x).detach(), rtol=0.1, atol=0.05)


@has_int8
@pytest.mark.parametrize("options", [{"padding_mode": "reflect", "padding": 1},
                                     {"padding": "same"}])  # fmt: skip
def test_other_paddings_are_refused_not_ignored(options):
    net = nn.Sequential(nn.Conv2d(3, 2, 3, **options))
    model = fake_quant.calibrate_(fake_quant.fake_quantize(net), [images()])
    with pytest.raises(QuantizationError, match="pads with zeros"):
        kernels.to_int8(model)


def test_asking_for_kernels_draws_no_numbers():
    before = torch.get_rng_state()
    if onednn.available():
        onednn.adds_exactly()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrong", [nn.Linear(2, 2), fake_quant.fake_quantize(small_net())]
)
def test_a_bare_layer_and_a_second_fake_quantization_are_refused(wrong):
    with pytest.raises(MicrobudgetError):
        fake_quant.fake_quantize(wrong)


def test_a_transformers_layer_still_works():
    # in training mode: the fast path of inference reads the weights past their layers
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = fake_quant.fake_quantize(layer, dynamic=True), torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), layer(x), rtol=0.2, atol=0.2)
    assert set(fake_quant.fake_quantized_layers(model)) == {"linear1", "linear2"}
