"""Other engines give torch's numbers: ONNX files, sessions, int8, graphs, memory."""

import subprocess
import sys
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
import sentences as tiny
import torch
import torchvision
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microbudget import export, low_rank
from microbudget.core.errors import EngineError, QuantizationError
from microbudget.core.modules import named_linear_layers
from microbudget.export import onnx as export_onnx
from microbudget.export import packages, quantize
from microbudget.training import text_classifier

PACKAGES = "onnx", "onnxscript", "onnxruntime", "openvino", "nncf"
if missing := [name for name in PACKAGES if not find_spec(name)]:
    pytest.skip(f"{missing}: {packages.REMEDY}", allow_module_level=True)
FROM_FILES = "onnxruntime", "openvino"
SIZE = 24


def network(seed=0):
    torch.manual_seed(seed)
    model = torchvision.models.MobileNetV2(
        num_classes=5, width_mult=0.25,
        inverted_residual_setting=[[1, 16, 1, 1], [4, 24, 2, 2]],
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(n, seed=0):
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def tokens(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, 9999, mask.shape, generator=generator) * mask, mask


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    model = network()
    path = export.export_image_classifier(
        model, folder / "net.onnx", SIZE, keep_steps=True
    )
    return model, path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Of low rank, as another chapter makes it."""
    model = tiny.classifier()
    names = [n for n in named_linear_layers(model) if not n.startswith("heads.")]
    ranks = dict.fromkeys(names, 20)
    model = low_rank.factorize(model, low_rank.decompose(model, names), ranks).eval()
    return model, export.export_text_classifier(
        model, tmp_path_factory.mktemp("s") / "s.onnx"
    )


@pytest.fixture(scope="module")
def sessions(classifier):
    _, path = classifier
    return [export.load_session(path, name, threads=1) for name in FROM_FILES]


@settings(max_examples=12)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_any_number_of_sentences_of_any_length(classifier, sessions, lengths, seed):
    inputs = tokens(lengths, seed)
    for session in sessions:
        assert export.relative_difference(classifier[0], session, [inputs]) < 1e-4


@pytest.mark.parametrize("engine", ["torch", *FROM_FILES])
@pytest.mark.parametrize("batch", [1, 3])
def test_images_in_every_engine(flowers, engine, batch):
    model, path = flowers
    own = path.with_suffix(".pt2") if engine == "torch" else path
    session = export.load_session(own, engine, threads=1)
    assert export.relative_difference(model, session, [(images(batch),)]) < 1e-4


def test_a_module_is_a_session_too_and_a_session_a_module(classifier, sessions):
    model, _ = classifier
    eager = export.load_session(model, "torch", threads=1)
    inputs = tokens([4, 7])
    np.testing.assert_allclose(eager(*inputs), model(*inputs).detach(), atol=1e-6)
    sentences = tiny.sentences()
    expected = text_classifier.predict(model, sentences, precision="no")
    for session in sessions:
        found = text_classifier.predict(session.module(), sentences)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_whispers_encoder_takes_any_window(tmp_path):
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48
    )
    encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    path = export.export_whisper_encoder(encoder, tmp_path / "encoder.onnx")
    session = export.load_session(path, "openvino", threads=1)
    model = export.WhisperEncoder(encoder)
    for batch, frames in ((1, 60), (3, 100)):
        mel = torch.randn(batch, 80, 2 * frames)
        assert export.relative_difference(model, session, [(mel,)]) < 1e-4


def test_what_depends_on_a_size_cannot_have_it_free(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1).sum(1)

    example = {"x": torch.ones(2, 3)}
    for axes, says in (("x", "dynamic axes"), ("y", "dynamic_axes names")):
        with pytest.raises(EngineError, match=says):
            export.export_module(
                Fixed(), tmp_path / "x.onnx", example, {axes: {0: "batch"}}
            )


def in_a_new_process(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_nothing_is_told_to_anybody():
    """NNCF and OpenVINO find no telemetry package, in a process that begins here."""
    code = (
        "import sys\n"
        "from microbudget.export import packages\n"
        "packages.load('openvino'), packages.load('nncf')\n"
        "from nncf.telemetry import telemetry\n"
        "print(type(telemetry).__name__, sys.modules['openvino_telemetry'])\n"
    )
    done = in_a_new_process(code)
    assert (done.stdout, done.stderr) == ("MagicMock None\n", "")


def agreement(session, model, inputs):
    with torch.inference_mode():
        expected = torch.cat([model(*given) for given in inputs])
    found = torch.as_tensor(np.concatenate([session(*given) for given in inputs]))
    error = (found - expected).square().mean() / expected.var()
    assert error > 0  # rounding has happened
    return 1 - float(error)


def test_int8_images_stay_near_and_get_smaller(flowers, tmp_path):
    model, path = flowers
    feed = [{"images": images(4, seed)} for seed in range(1, 5)]
    test_inputs = [(images(8, 99),)]
    own = export.quantize_static(path, tmp_path / "int8.onnx", feed)
    assert agreement(export.load_session(own, threads=1), model, test_inputs) > 0.8
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(export.count_operators(own))
    folder = export.quantize_openvino(path, tmp_path / "int8", feed)
    assert sorted(p.name for p in folder.iterdir()) == ["model.bin", "model.xml"]
    session = export.load_session(folder, "openvino", threads=1)
    assert agreement(session, model, test_inputs) > 0.8
    assert {"i8", "u8"} & set(export.operator_precisions(session))


@pytest.mark.parametrize("less", [False, True])
def test_int8_weights_of_seven_bits_use_half_the_range(
    classifier, tmp_path, monkeypatch, less
):
    import onnx

    model, path = classifier
    monkeypatch.setattr(quantize, "needs_reduced_range", lambda: less)
    own = export.quantize_dynamic(path, tmp_path / "int8.onnx")
    assert own.stat().st_size < 0.5 * path.stat().st_size
    assert agreement(export.load_session(own, threads=1), model, [tokens([5, 9])]) > 0.8
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in onnx.load(own).graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    ]
    most = max(int(np.abs(w.astype(int)).max()) for w in weights if len(w) < 1000)
    assert most <= 64 if less else most > 64


def test_static_int8_and_nncf_of_a_transformer(classifier, tmp_path, capfd):
    model, path = classifier
    feed = [dict(zip(("ids", "mask"), tokens([6, 8], s), strict=True)) for s in (1, 2)]
    test_inputs = [tokens([5, 9], 50), tokens([3], 51)]
    config = export.StaticConfig(operators=["MatMul", "Gemm"])
    own = export.quantize_static(path, tmp_path / "s.onnx", feed, config)
    assert agreement(export.load_session(own, threads=1), model, test_inputs) > 0.5
    folder = export.quantize_openvino(path, tmp_path / "ov", feed, transformer=True)
    session = export.load_session(folder, "openvino", threads=1)
    assert agreement(session, model, test_inputs) > 0.5
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_graphs_shrink_step_by_step(flowers, tmp_path):
    _, path = flowers
    raw = export.count_operators(path.with_suffix(".raw.onnx"))
    simple = export.count_operators(path)
    assert raw["BatchNormalization"] > 0
    assert simple["BatchNormalization"] == 0  # folded into the convolutions
    assert sum(simple.values()) < sum(raw.values())
    fused = export.count_operators(export.optimize_graph(path, tmp_path / "fused.onnx"))
    assert sum(fused.values()) < sum(simple.values())
    assert fused["Clip"] < simple["Clip"]  # ReLU6 became part of a convolution
    there = export.compiled_operators(export.load_session(path, "openvino", threads=1))
    assert there["Convolution"] == simple["Conv"]


def test_a_process_of_its_own_needs_no_torch(flowers):
    _, path = flowers
    shape = [((1, 3, SIZE, SIZE), "float32")]
    found = export.measure_footprint(path, "onnxruntime", shape, threads=1)
    assert 0 < found.engine_bytes <= found.peak_bytes < 300e6  # torch alone takes more
    with pytest.raises(EngineError, match="process of its own"):
        export.measure_footprint(path, "onnxruntime", [((1, 3, 5, 5), "float32")], 1)


def test_threads_are_torchs_again_after_a_call():
    class Counting(nn.Module):
        def forward(self, x):
            return x * torch.get_num_threads()

    before = torch.get_num_threads()
    session = export.load_session(Counting(), "torch", threads=before + 1)
    assert session(torch.ones(1)) == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("difference", [1.0, float("nan")])
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch, difference):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"an older one")

    def other_session(*_):
        return lambda x: np.full((len(x), 2), difference, np.float32)

    monkeypatch.setattr(export_onnx.sessions, "load_session", other_session)
    with pytest.raises(EngineError, match="differs from torch"):
        export.export_module(nn.Linear(3, 2), path, {"x": torch.ones(2, 3)}, {})
    assert path.read_bytes() == b"an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def convolutions_in_bytes(path):
    """The type of each convolution's weights; None for those in floats."""
    import onnx

    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    read = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    return [types[read[n.input[1]].input[0]] if n.input[1] in read else None
            for n in convs]  # fmt: skip


def test_ranges_are_measured_once_for_a_network_and_its_data(flowers, tmp_path):
    from onnxruntime.quantization import calibrate

    _, path = flowers
    other = export.export_image_classifier(network(seed=1), tmp_path / "b.onnx", SIZE)
    feed, brighter = [{"images": images(3)}], [{"images": 2 * images(3)}]
    with mock.patch.object(
        calibrate.MinMaxCalibrater, "collect_data", autospec=True,
        side_effect=calibrate.MinMaxCalibrater.collect_data,
    ) as measure:  # fmt: skip
        for own, batches, measured in (
            (path, feed, 1), (path, feed, 1), (other, feed, 2), (path, brighter, 3),
            (other, feed, 3),
        ):  # fmt: skip
            export.quantize_static(own, tmp_path / "int8.onnx", batches)
            assert measure.call_count == measured
    # ranges that were kept are as good as ranges measured afresh
    kept = (tmp_path / "int8.onnx").read_bytes()
    quantize.ranges_folder.cache_clear()
    export.quantize_static(other, tmp_path / "int8.onnx", feed)
    assert (tmp_path / "int8.onnx").read_bytes() == kept


def test_a_selection_of_nodes(flowers, tmp_path):
    import onnx

    _, path = flowers
    feed = [{"images": images(3).requires_grad_()}, {"images": 3 * images(2)}]
    target, first = tmp_path / "int8.onnx", export.first_nodes(path, 2)
    config = export.StaticConfig(unsigned=True, float_nodes=first)
    export.quantize_static(path, target, feed, config)
    found = convolutions_in_bytes(target)
    assert found[:2] == [None, None]
    assert set(found[2:]) == {onnx.TensorProto.UINT8}
    last = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    config = export.StaticConfig(operators=["Conv"], nodes=last[-1:], method="MinMax")
    export.quantize_static(path, target, feed, config)
    assert [kind is not None for kind in convolutions_in_bytes(target)].count(True) == 1
    for wrong in ({"float_nodes": ["other"]}, {"nodes": ["other"]}):
        with pytest.raises(QuantizationError, match="has no node other"):
            export.quantize_static(path, target, feed, export.StaticConfig(**wrong))
    with pytest.raises(QuantizationError, match="use one of Average, MinMax"):
        export.quantize_static(path, target, feed, export.StaticConfig(method="max"))
    with pytest.raises(QuantizationError, match="Has it 99 convolutions"):
        export.first_nodes(path, 99)


@pytest.mark.parametrize("method", [export.quantize_static, export.quantize_openvino])
def test_bad_calibration_data_are_a_plain_error(flowers, tmp_path, method):
    for feed, says in (
        ([], "No calibration data"),
        ([{"photos": images(1)}], "can't be quantized"),
    ):
        with pytest.raises(QuantizationError, match=says):
            method(flowers[1], tmp_path / "x", feed)
    assert not list(tmp_path.iterdir())


def test_bad_files_and_inputs_are_plain_errors(flowers, tmp_path):
    model, path = flowers
    broken, absent = tmp_path / "broken.onnx", tmp_path / "none.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="no model at"):
        export.load_session(absent)
    with pytest.raises(EngineError, match="use one of"):
        export.load_session(path, "tensorrt")
    with pytest.raises(EngineError, match="reads files"):
        export.load_session(model, "openvino")
    for engine in FROM_FILES:
        with pytest.raises(EngineError, match="can't read"):
            export.load_session(broken, engine)
        session = export.load_session(path, engine, threads=1)
        for wrong in ((images(1), images(1)), (torch.ones(1, 3, SIZE + 8, SIZE),)):
            with pytest.raises(EngineError, match="refuses inputs"):
                session(*wrong)
    for file, says in ((broken, "broken.onnx can't be"), (absent, "no file|none.onnx")):
        with pytest.raises(EngineError, match="can't be read"):
            export.count_operators(file)
        with pytest.raises(QuantizationError, match=says):
            export.first_nodes(file, 1)
        with pytest.raises(QuantizationError, match=says):
            export.quantize_dynamic(file, tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_without_the_extra_the_errors_say_what_to_install(monkeypatch, flowers):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    assert list(export.available_engines()) == ["torch"]
    assert set(export.missing_engines()) == {"onnxruntime", "openvino"}
    feed = [{"images": images(1)}]
    for call in (
        lambda: export.load_session(flowers[1]),
        lambda: export.export_image_classifier(flowers[0], "x.onnx", SIZE),
        lambda: export.quantize_openvino(flowers[1], "x", feed),
        lambda: export.count_operators(flowers[1]),
    ):
        with pytest.raises(EngineError, match=r"microbudget\[export\]"):
            call()
