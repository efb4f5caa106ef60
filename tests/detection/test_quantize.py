"""A network's convolutions, the ranges of its tensors, and float16."""

from importlib.util import find_spec

import numpy as np
import pytest

from microbudget.core.errors import QuantizationError
from microbudget.detection.quantize import convolutions, to_float16
from microbudget.export.quantize import StaticConfig, quantize_static

if not all(find_spec(name) for name in ("onnx", "onnxruntime", "openvino")):
    pytest.skip("the export extra", allow_module_level=True)
NAMES = ["first", "second", "third"]


def save_network(path):
    """Three convolutions of four channels, one after the other."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    weights, nodes, given = [], [], "images"
    for i, name in enumerate(NAMES):
        weight = rng.normal(size=(4, 4 if i else 3, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(
            helper.make_node(
                "Conv", [given, f"w{i}"], [f"y{i}"], name=name, pads=[1, 1, 1, 1]
            )
        )
        given = f"y{i}"
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 8, 8]), (given, [1, 4, 8, 8]))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.fixture
def network(tmp_path):
    return save_network(tmp_path / "network.onnx")


def test_convolutions_are_listed_in_their_order(network):
    sizes = {"first": 108, "second": 144, "third": 144}
    assert list(convolutions(network).items()) == list(sizes.items())


def test_averaged_ranges_lie_within_those_of_all_batches(network, tmp_path):
    import onnx
    from onnx import numpy_helper

    image = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    batches, widths = [{"images": image}, {"images": 3 * image}], {}
    for method in ("Average", "MinMax"):
        config = StaticConfig(operators=["Conv"], method=method)
        path = quantize_static(network, tmp_path / "x", batches, config)
        scales = {
            tensor.name: float(numpy_helper.to_array(tensor))
            for tensor in onnx.load(path).graph.initializer
            if tensor.name.endswith("_scale") and not tensor.dims
        }
        widths[method] = np.array(list(scales.values()))  # of the ranges, over 255
    assert len(widths["Average"]) >= 3
    assert (widths["Average"] <= widths["MinMax"]).all()
    assert (widths["Average"] < 0.9 * widths["MinMax"]).any()


def test_float16_takes_half_of_the_bytes(network, tmp_path):
    folder = to_float16(network, tmp_path / "half")
    assert (folder / "model.bin").stat().st_size < 0.6 * 4 * (108 + 2 * 144)


def test_missing_and_damaged_files_are_plain_errors(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    for call in (convolutions, lambda path: to_float16(path, tmp_path / "x")):
        with pytest.raises(QuantizationError, match="export the model first"):
            call(tmp_path / "none.onnx")
        with pytest.raises(QuantizationError, match=r"broken\.onnx .* again"):
            call(broken)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]
