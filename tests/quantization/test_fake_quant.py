"""Fake quantization, and the int8 kernels that make it real."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from microbudget.core import onednn
from microbudget.core.errors import MicrobudgetError, QuantizationError
from microbudget.models.mobilenet import SamePadConv2d
from microbudget.models.vision import fold_batchnorm
from microbudget.quantization import checkpoint, fake_quant, kernels, mapping
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


def calibrated(net, batches, bits=8, input_bits=8, **options):
    model = fake_quant.fake_quantize(net, bits, input_bits)
    return fake_quant.calibrate_(model, batches, **options)


def test_more_bits_come_nearer_and_the_original_is_untouched():
    net, x = small_net(), images()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    distances = []
    for bits in (3, 5, 8):
        other = calibrated(net, [x], bits, bits)
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
    model = calibrated(nn.Sequential(linear), [x])
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

    model = calibrated(net, [x], 2)
    before = float(loss(model, (x, labels)).detach())
    fit(model, (x, labels), loss, TrainConfig(epochs=15, batch_size=16, lr=5e-3))
    assert float(loss(model, (x, labels)).detach()) < before
    for part in fake_quant.fake_quantized_layers(model).values():
        codes = part.weight_mapping().quantize(part.layer.weight)
        assert set(codes.unique().tolist()) <= {-1, 0, 1}


@has_int8
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_the_kernels_compute_what_was_fake_quantized(activation):
    net, x = small_net(activation), images()
    bits = 8 if onednn.adds_exactly() else 7
    model = calibrated(net, [x], bits)
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


@pytest.mark.gpu
def test_a_gpu_computes_the_same():
    net, x = small_net(), images()
    model = calibrated(net, [x])
    there = calibrated(net.cuda(), [x])  # data comes to it
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
        model = calibrated(net, x.split(16), 3, 0, correct_bias=correct)
        with torch.no_grad():
            shifts[correct] = (model(x) - net(x)).mean((0, 2, 3)).abs().max()
    assert shifts[True] < 1e-5 < 1e-3 < shifts[False]


def test_biases_of_tokens_are_corrected_over_tokens_and_only_once():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 9)), torch.randn(10, 4, 6) + 1
    model = calibrated(net, [x[:7], x[7:]], 3, 0, correct_bias=True)  # unequal batches
    with torch.no_grad():
        assert (model(x) - net(x)).mean((0, 1)).abs().max() < 1e-5
    with pytest.raises(QuantizationError, match="corrected already"):
        fake_quant.calibrate_(model, [x], correct_bias=True)


def test_a_transformers_layer_still_works():
    # in training mode: the fast path of inference reads the weights past their layers
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = fake_quant.fake_quantize(layer, dynamic=True), torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), layer(x), rtol=0.2, atol=0.2)
    assert set(fake_quant.fake_quantized_layers(model)) == {"linear1", "linear2"}


def test_calibration_finds_the_extremes_of_all_batches():
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    model = calibrated(nn.Sequential(nn.Linear(7, 2)), x.split(300))
    (layer,) = fake_quant.fake_quantized_layers(model).values()
    assert (float(layer.low), float(layer.high)) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fake_quant.fake_quantize(nn.Sequential(nn.ReLU())),
        lambda: fake_quant.fake_quantize(small_net(), {"nobody": 8}),
        lambda: fake_quant.fake_quantize(nn.Linear(2, 2)),
        lambda: fake_quant.fake_quantize(fake_quant.fake_quantize(small_net())),
        lambda: calibrated(small_net(), []),
        lambda: checkpoint.save(small_net(), "floats.safetensors"),
        lambda: checkpoint.save(fake_quant.fake_quantize(small_net(), 9), "x"),
    ],
)
def test_what_cant_be_fake_quantized_is_said(wrong):
    with pytest.raises(MicrobudgetError):
        wrong()


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@has_int8
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        # a chain is cut where something else stands between two layers
        (
            [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)],
            (6, 3, 12, 13),
        ),
        ([Residual(nn.Conv2d(3, 3, 1))], (6, 3, 12, 13)),  # its own forward stays
        ([nn.Linear(6, 9)], (2, 5, 6)),  # of tokens
    ],
)
def test_other_modules_keep_their_part_in_int8(net, shape):
    torch.manual_seed(0)
    net = nn.Sequential(*net).eval()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    x = torch.randn(shape)
    model = calibrated(net, [x], bits=7)
    with torch.no_grad():
        found, expected = kernels.to_int8(model)(x), model(x)
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


@has_int8
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (fake_quant.fake_quantize(small_net()), "calibrate"),
        (calibrated(small_net(), [images()], input_bits=4), "8-bit inputs"),
    ],
)
def test_what_the_kernels_cant_compute_is_refused(model, message):
    with pytest.raises(QuantizationError, match=message):
        kernels.to_int8(model)


@pytest.mark.parametrize("bits", [8, 7, 3])
def test_a_file_of_codes_gives_the_same_answers(tmp_path, bits):
    path = tmp_path / "net.safetensors"
    bits_of = {"0.0": 8, "1.0": 8, "2": bits, "5": 8}
    model = calibrated(small_net(), [images()], bits_of, correct_bias=True)
    own = fake_quant.fake_quantized_layers(model)
    own["2"].input_bits, own["5"].per_channel = 0, False
    own["2"].low.fill_(0)  # as if it had never been calibrated
    own["2"].high.fill_(-1)
    checkpoint.save(model, path, note="mine")
    again = checkpoint.load(path, small_net())
    assert again.metadata == {"note": "mine"}
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
    with safe_open(path, "pt") as file:
        assert file.get_tensor("5.codes").dtype == torch.int8
    layers = fake_quant.fake_quantized_layers(again).values()
    assert [layer.bits for layer in layers] == [8, 8, bits, 8]
    assert [layer.input_bits for layer in layers] == [8, 8, 0, 8]
    assert [layer.per_channel for layer in layers] == [True, True, True, False]
    with pytest.raises(QuantizationError, match="corrected already"):
        fake_quant.calibrate_(again, [images()], correct_bias=True)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoint.save(calibrated(small_net(), [images()]), path)
    wider = small_net()
    wider[5] = nn.Linear(6, 9)
    with pytest.raises(MicrobudgetError, match="build the architecture"):
        checkpoint.load(path, wider)
    unfolded = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    checkpoint.save(calibrated(fold_batchnorm(unfolded), [images()]), path)
    with pytest.raises(MicrobudgetError, match="batch-norms folded"):
        checkpoint.load(path, unfolded)
