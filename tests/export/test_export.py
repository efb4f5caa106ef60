"""Other engines give torch's numbers: ONNX files, sessions, int8, graphs, memory."""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import sentences as tiny
import torch
import torchvision
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microbudget.core import onednn
from microbudget.core.errors import EngineError, QuantizationError
from microbudget.core.modules import named_linear_layers
from microbudget.detection import quantize as detector_int8
from microbudget.distillation import students
from microbudget.export import footprint, inspect, loaders, packages, quantize
from microbudget.export import onnx as onnx_file
from microbudget.export import sessions as runtimes
from microbudget.low_rank import factorize
from microbudget.training import text_classifier

ENGINES = "onnx", "onnxscript", "onnxruntime", "openvino", "nncf"
if missing := [name for name in ENGINES if not find_spec(name)]:
    pytest.skip(f"{missing}: {packages.REMEDY}", allow_module_level=True)
SIZE = 24
_ENDS = "lowest", "highest"  # of a range, in ONNX Runtime's files


def network():
    torch.manual_seed(0)
    model = torchvision.models.MobileNetV2(
        num_classes=5, width_mult=0.25,
        inverted_residual_setting=[[1, 16, 1, 1], [4, 24, 2, 2]],
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def pictures(n, seed=0):
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def tokens(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, 9999, mask.shape, generator=generator) * mask, mask


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    model = network()
    path = onnx_file.pictures(
        model, folder / "net.onnx", SIZE, raw=folder / "raw.onnx",
        program=folder / "net.pt2",
    )  # fmt: skip
    return model, path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """With fewer layers and of low rank, as other chapters make them."""
    model = students.truncated(tiny.classifier(), [1])
    names = [n for n in named_linear_layers(model) if not n.startswith("heads.")]
    parts = factorize.decompose(model, names)
    ranks = dict.fromkeys(names, 20)
    model = factorize.factorize(model, parts, ranks).eval()
    return model, onnx_file.sentences(model, tmp_path_factory.mktemp("s") / "s.onnx")


@pytest.fixture(scope="module")
def sessions(classifier):
    _, path = classifier
    return [runtimes.load(path, name, threads=1) for name in runtimes.ENGINES[1:]]


@settings(max_examples=12)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_any_number_of_sentences_of_any_length(classifier, sessions, lengths, seed):
    inputs = tokens(lengths, seed)
    for session in sessions:
        assert session.inputs == ("ids", "mask")
        assert onnx_file.difference(classifier[0], session, [inputs]) < 1e-4


@pytest.mark.parametrize("engine", runtimes.ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_in_every_engine(flowers, engine, batch):
    model, path = flowers
    own = path.with_suffix(".pt2") if engine == "torch" else path
    session = runtimes.load(own, engine, threads=1)
    assert session.load_s > 0
    assert onnx_file.difference(model, session, [(pictures(batch),)]) < 1e-4


def test_a_module_is_a_session_too_and_a_session_a_module(classifier, sessions):
    model, _ = classifier
    eager = runtimes.load(model, "torch", threads=1)
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
    encoder.layers[0].train()
    path = onnx_file.listener(encoder, tmp_path / "encoder.onnx")
    assert not encoder.training
    assert encoder.layers[0].training  # each module's mode is what it was
    encoder.eval()
    session = runtimes.load(path, "openvino", threads=1)
    model = onnx_file.Listener(encoder)
    for batch, frames in ((1, 60), (3, 100)):
        mel = torch.randn(batch, 80, 2 * frames)
        assert onnx_file.difference(model, session, [(mel,)]) < 1e-4


def test_a_file_that_differs_is_not_written(tmp_path):
    class Fickle(nn.Module):
        def forward(self, x):
            return x + torch.full((), self.offset)

    model = Fickle()
    model.offset = 1.0
    path, others = tmp_path / "x.onnx", {"raw": tmp_path / "raw.onnx"}
    others["program"] = tmp_path / "x.pt2"
    example, free = {"x": torch.ones(2, 3)}, {"x": {0: "batch"}}
    path.write_bytes(b"an older one")
    original = onnx_file.trace

    def and_then_changed(*arguments):
        traced = original(*arguments)
        model.offset = 2.0
        return traced

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "trace", and_then_changed)
        with pytest.raises(EngineError, match="differs from torch"):
            onnx_file.save(model, path, example, free, **others)
    assert model.training
    assert path.read_bytes() == b"an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_what_is_not_a_number_differs(tmp_path, monkeypatch):
    model = nn.Linear(3, 2)

    def session(x):
        return np.full((len(x), 2), np.nan, np.float32)

    batches = [(torch.ones(1, 3),), (torch.ones(2, 3),)]
    assert np.isnan(onnx_file.difference(model, session, batches))
    monkeypatch.setattr(runtimes, "load", lambda *_: session)
    with pytest.raises(EngineError, match="differs from torch by nan"):
        onnx_file.save(model, tmp_path / "x.onnx", {"x": torch.ones(2, 3)}, {})
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_write_is_a_plain_error(tmp_path, monkeypatch):
    model, given = nn.Linear(3, 2), {"x": torch.ones(2, 3)}

    def fails(*_, **__):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", fails)
        with pytest.raises(EngineError, match="Linear can't be exported: RuntimeError"):
            onnx_file.save(model, tmp_path / "x.onnx", given, {})
    monkeypatch.setattr(onnx_file, "MOST", 10)
    with pytest.raises(EngineError, match="of weights"):
        onnx_file.save(model, tmp_path / "x.onnx", given, {})
    assert not list(tmp_path.iterdir())


def test_a_sessions_inputs_are_those_forward_needs():
    class Optional(nn.Module):
        def forward(self, x, scale=2, *more, loud=False):
            return x * scale

    session = runtimes.load(Optional(), "torch", threads=1)
    assert session.inputs == ("x",)
    np.testing.assert_array_equal(session(torch.ones(2, requires_grad=True)), [2, 2])


def test_what_depends_on_a_size_cannot_have_it_free(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1).sum(1)

    with pytest.raises(EngineError, match="free axes"):
        onnx_file.save(Fixed(), tmp_path / "x.onnx", {"x": torch.ones(2, 3)},
                       {"x": {0: "batch"}})  # fmt: skip
    with pytest.raises(EngineError, match="free names"):
        onnx_file.save(Fixed(), tmp_path / "x.onnx", {"x": torch.ones(2, 3)},
                       {"y": {0: "batch"}})  # fmt: skip


def test_bad_files_and_inputs_are_plain_errors(flowers, tmp_path):
    model, path = flowers
    with pytest.raises(EngineError, match="no model at"):
        runtimes.load(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="use one of"):
        runtimes.load(path, "tensorrt")
    with pytest.raises(EngineError, match="needs a file"):
        runtimes.load(model, "openvino")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    for engine in runtimes.ENGINES[1:]:
        with pytest.raises(EngineError, match="can't read"):
            runtimes.load(broken, engine)
        session = runtimes.load(path, engine, threads=1)
        with pytest.raises(EngineError, match="inputs given"):
            session(pictures(1), pictures(1))
        with pytest.raises(EngineError, match="refuses inputs"):
            session(torch.ones(1, 3, SIZE + 8, SIZE))
    with pytest.raises(EngineError, match="no ONNX file"):
        inspect.operators(broken)
    with pytest.raises(EngineError, match="export the model first"):
        inspect.operators(tmp_path / "none.onnx")


def test_without_the_extra_the_errors_say_what_to_install(monkeypatch, flowers):
    for name in ("onnxruntime", "openvino", "onnxscript", "nncf"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(runtimes.available()) == ["torch"]
    assert set(runtimes.missing()) == {"onnxruntime", "openvino"}
    assert "microbudget[export]" in runtimes.missing()["openvino"]
    for call in (
        lambda: runtimes.load(flowers[1]),
        lambda: onnx_file.pictures(flowers[0], "x.onnx", SIZE),
        lambda: quantize.openvino(flowers[1], "x", [{"pictures": pictures(1)}]),
    ):
        with pytest.raises(EngineError, match=r"microbudget\[export\]"):
            call()


def in_a_new_process(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_package_imports_without_any_engine():
    code = (
        "import sys\n"
        "for n in ('onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf'):\n"
        "    sys.modules[n] = None\n"
        "import microbudget as mb\n"
        "mb.export.onnx, mb.export.inspect, mb.export.footprint\n"
        "print(list(mb.export.sessions.available()))\n"
    )
    done = in_a_new_process(code)
    assert done.stdout == "['torch']\n"


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


def test_int8_pictures_stay_near_and_get_smaller(flowers, tmp_path):
    model, path = flowers
    feed = [{"pictures": pictures(4, seed)} for seed in range(1, 5)]
    judged = [(pictures(8, 99),)]
    own = quantize.static(path, tmp_path / "int8.onnx", feed)
    assert agreement(runtimes.load(own, threads=1), model, judged) > 0.8
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(inspect.operators(own))
    folder = quantize.openvino(path, tmp_path / "int8", feed)
    assert sorted(p.name for p in folder.iterdir()) == ["model.bin", "model.xml"]
    session = runtimes.load(folder, "openvino", threads=1)
    assert agreement(session, model, judged) > 0.8
    assert {"i8", "u8"} & set(inspect.precisions(session))


@pytest.mark.parametrize("less", [False, True])
def test_int8_weights_of_seven_bits_use_half_the_range(classifier, tmp_path, less):
    import onnx

    model, path = classifier
    own = quantize.dynamic(path, tmp_path / "int8.onnx", reduce_range=less)
    assert own.stat().st_size < 0.5 * path.stat().st_size
    assert agreement(runtimes.load(own, threads=1), model, [tokens([5, 9])]) > 0.8
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
    judged = [tokens([5, 9], 50), tokens([3], 51)]
    own = quantize.static(path, tmp_path / "s.onnx", feed, operators=["MatMul", "Gemm"])
    assert agreement(runtimes.load(own, threads=1), model, judged) > 0.5
    folder = quantize.openvino(path, tmp_path / "ov", feed, transformer=True)
    session = runtimes.load(folder, "openvino", threads=1)
    assert agreement(session, model, judged) > 0.5
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_the_first_layers_can_stay_in_floats(flowers, tmp_path):
    _, path = flowers
    feed = [{"pictures": pictures(4)}]
    kept = quantize.first(path, 2)
    options = {"unsigned": True, "keep": kept, "method": "MinMax"}
    own = quantize.static(path, tmp_path / "int8.onnx", feed, **options)

    def of_bytes(file):
        import onnx

        graph = onnx.load(file).graph
        found = {t.name: t.data_type for t in graph.initializer}
        read = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
        convs = [n for n in graph.node if n.op_type == "Conv"]
        return [found.get(read[n.input[1]].input[0]) if n.input[1] in read else None
                for n in convs], onnx.TensorProto  # fmt: skip

    kinds, types = of_bytes(own)
    assert kinds[:2] == [None, None]
    assert set(kinds[2:]) == {types.UINT8}
    with pytest.raises(QuantizationError, match="were asked for"):
        quantize.first(path, 99)
    for wrong, says in (
        ({"keep": ["conv_that_is_not"]}, "has no node conv_that_is_not"),
        ({"method": "minmax"}, "use one of Average, MinMax"),
    ):
        with pytest.raises(QuantizationError, match=says):
            quantize.static(path, tmp_path / "x.onnx", feed, **wrong)


def test_nodes_without_names_are_not_chosen_by_name(flowers, tmp_path):
    import onnx

    graph = onnx.load(flowers[1])
    convs = [node for node in graph.graph.node if node.op_type == "Conv"]
    for names in (("", ""), ("same", "same")):
        for node, name in zip(convs[:2], names, strict=True):
            node.name = name
        onnx.save(graph, tmp_path / "x.onnx")
        for call in (lambda p: quantize.first(p, 2), detector_int8.convolutions):
            with pytest.raises(QuantizationError, match="chosen by name"):
                call(tmp_path / "x.onnx")


def _in_bytes(path):
    """Names of the convolutions whose weights come from a DequantizeLinear."""
    import onnx

    graph = onnx.load(path).graph
    kind = {name: node.op_type for node in graph.node for name in node.output}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and kind.get(node.input[1]) == "DequantizeLinear"
    ]


def test_any_selection_of_convolutions_by_ranges_measured_once(flowers, tmp_path):
    _, path = flowers
    names = list(detector_int8.convolutions(path))
    target, ranges = tmp_path / "x.onnx", tmp_path / "ranges.json"
    with pytest.raises(QuantizationError, match=r"no ranges at ranges\.json"):
        detector_int8.quantize(path, target, ranges)
    with pytest.raises(QuantizationError, match="no convolution other"):
        detector_int8.quantize(path, target, ranges, names=["other"])
    feed = [{"pictures": pictures(4).requires_grad_()}]
    assert _in_bytes(detector_int8.quantize(path, target, ranges, feed)) == names
    measured = ranges.read_bytes()
    some = names[1::2]
    assert _in_bytes(detector_int8.quantize(path, target, ranges, names=some)) == some
    assert ranges.read_bytes() == measured
    other = path.parent / "raw.onnx"
    with pytest.raises(QuantizationError, match="not measured in this network"):
        detector_int8.quantize(other, target, ranges, feed)
    ranges.write_text("{")
    with pytest.raises(QuantizationError, match="not measured in this network"):
        detector_int8.quantize(path, target, ranges, feed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ranges.json", "x.onnx"]


def test_averaged_ranges_lie_within_those_of_all_batches(flowers, tmp_path):
    _, path = flowers
    feed = [{"pictures": k * pictures(2)} for k in (1, 3)]  # of different size
    ends = {}
    for method in ("Average", "MinMax"):
        own = tmp_path / f"{method}.json"
        detector_int8.quantize(path, tmp_path / "x.onnx", own, feed, method=method)
        table = json.loads(own.read_text())["data"].values()
        ends[method] = np.array([[t[e]["data"] for e in _ENDS] for t in table])[..., 0]
        other = {"Average": "MinMax", "MinMax": "Average"}[method]
        with pytest.raises(QuantizationError, match=f"in this network by '{other}'"):
            detector_int8.quantize(path, tmp_path / "x.onnx", own, feed, method=other)
    (low, high), (least, most) = ends["Average"].T, ends["MinMax"].T
    assert (least <= low).all() and (high <= most).all()
    assert (high - low < 0.9 * (most - least)).any()
    with pytest.raises(QuantizationError, match="use 'Average' or 'MinMax'"):
        detector_int8.quantize(path, tmp_path / "x.onnx", own, feed, method="Entropy")


def test_ranges_measured_once_give_the_file_that_measuring_again_gives(
    flowers, tmp_path
):
    _, path = flowers
    feed = [{"pictures": pictures(3)}, {"pictures": pictures(2)}]
    ranges = tmp_path / "ranges.json"
    again = {"unsigned": True, "keep": quantize.first(path, 2)}
    quantize.static(path, tmp_path / "x.onnx", feed, ranges=ranges)
    for name, own in {"a": {"ranges": ranges}, "b": {}}.items():
        data = [] if own else feed  # no data are needed any more
        quantize.static(path, tmp_path / name, data, **again, **own)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(QuantizationError, match="not measured in this network by 'Min"):
        quantize.static(path, tmp_path / "x", feed, ranges=ranges, method="MinMax")
    with pytest.raises(QuantizationError, match="not measured in this network"):
        quantize.static(path.parent / "raw.onnx", tmp_path / "x", feed, ranges=ranges)


def test_half_of_the_bytes(flowers, tmp_path):
    model, path = flowers
    folder = detector_int8.half(path, tmp_path / "half")
    assert (folder / "model.bin").stat().st_size < 0.6 * path.stat().st_size
    session = runtimes.load(folder, "openvino", threads=1)
    assert onnx_file.difference(model, session, [(pictures(2),)]) < 0.02


def test_missing_and_damaged_files_are_plain_errors(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    for call in (
        lambda p: quantize.first(p, 1),
        detector_int8.convolutions,
        lambda p: detector_int8.quantize(p, tmp_path / "x", tmp_path / "r"),
        lambda p: detector_int8.half(p, tmp_path / "x"),
    ):
        with pytest.raises(QuantizationError, match="export the model first"):
            call(tmp_path / "none.onnx")
        with pytest.raises(QuantizationError, match=r"broken\.onnx .* again"):
            call(broken)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_bad_calibration_is_a_plain_error(flowers, tmp_path):
    _, path = flowers
    wrong = [{"photos": pictures(1)}]
    kept = partial(quantize.static, ranges=tmp_path / "ranges.json")
    for call in (quantize.static, kept, quantize.openvino):
        with pytest.raises(QuantizationError, match="No calibration data"):
            call(path, tmp_path / "x", [])
        with pytest.raises(QuantizationError, match="can't be quantized"):
            call(path, tmp_path / "x", wrong)
    with pytest.raises(QuantizationError, match="export the model first"):
        quantize.dynamic(tmp_path / "none.onnx", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_narrow_follows_the_processor(monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: True)
    for exact in (True, False):
        monkeypatch.setattr(onednn, "adds_exactly", lambda exact=exact: exact)
        assert quantize.narrow() is not exact


def test_graphs_shrink_step_by_step(flowers, tmp_path):
    _, path = flowers
    raw = inspect.operators(path.parent / "raw.onnx")
    simple = inspect.operators(path)
    assert raw["BatchNormalization"] > 0
    assert simple["BatchNormalization"] == 0  # folded into the convolutions
    assert sum(simple.values()) < sum(raw.values())
    fused = inspect.operators(inspect.optimise(path, tmp_path / "fused.onnx"))
    assert sum(fused.values()) < sum(simple.values())
    assert fused["Clip"] < simple["Clip"]  # ReLU6 became part of a convolution
    with pytest.raises(EngineError, match="use one of"):
        inspect.optimise(path, tmp_path / "x.onnx", level="most")
    there = inspect.compiled(runtimes.load(path, "openvino", threads=1))
    assert there["Convolution"] == simple["Conv"]
    with pytest.raises(EngineError):
        inspect.compiled(runtimes.load(path, threads=1))


def test_a_process_of_its_own_needs_no_torch(flowers):
    _, path = flowers
    shape = [((1, 3, SIZE, SIZE), "float32")]
    found = footprint.measure(path, "onnxruntime", shape, threads=1)
    assert 0 < found.engine_bytes <= found.peak_bytes < 300e6  # torch alone takes more
    assert min(found.import_s, found.load_s, found.first_s) > 0
    with pytest.raises(EngineError, match="process of its own"):
        footprint.measure(path, "onnxruntime", [((1, 3, 5, 5), "float32")])


def test_threads_are_torchs_again_after_a_call():
    class Counting(nn.Module):
        def forward(self, x):
            return x * torch.get_num_threads()

    before = torch.get_num_threads()
    session = runtimes.load(Counting(), "torch", threads=before + 1)
    assert session(torch.ones(1)) == before + 1
    assert torch.get_num_threads() == before
    assert set(loaders.LOADERS) == set(runtimes.ENGINES)
