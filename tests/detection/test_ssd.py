"""SSDLite, profile full's small detector: its boxes against torchvision's, its file."""

import hashlib
import io
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from microbudget import assets
from microbudget.assets import catalog
from microbudget.core.errors import AssetError, DataError
from microbudget.detection import boxes as bx
from microbudget.detection import coco, detectors, picodet, ssd


def theirs(model):
    """torchvision's default boxes, of an empty picture."""
    from torchvision.models.detection.image_list import ImageList

    maps = [torch.zeros(1, 1, side, side) for side in ssd.GRIDS]
    images = ImageList(torch.zeros(1, 3, *ssd.SIZE), [ssd.SIZE])
    return model.anchor_generator(images, maps)


def test_default_boxes_are_torchvisions():
    corners = theirs(ssd.build())[0].numpy() / 320
    low, high = corners[:, :2], corners[:, 2:]
    expected = np.concatenate([(low + high) / 2, high - low], 1)
    np.testing.assert_allclose(ssd.default_boxes(), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_torchvisions(monkeypatch, seed):
    """All but the suppression, whose operator a CPU-only torch lacks, is theirs."""

    def suppress(boxes, scores, labels, overlap):
        apart = boxes + 1000 * labels[:, None]  # boxes of two classes never meet
        return torch.from_numpy(bx.suppress(apart.numpy(), scores.numpy(), overlap))

    module = torchvision.models.detection.ssd
    monkeypatch.setattr(module.box_ops, "batched_nms", suppress)
    model, count = ssd.build().eval(), len(ssd.default_boxes())
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, count, 91, generator=generator)
    logits[..., 0] += 9  # background nearly everywhere
    logits[:, ::60, list(ssd.classes())[seed::9]] += 9
    change = 2 * torch.randn(1, count, 4, generator=generator)
    model.score_thresh = 0.05
    (expected,) = model.postprocess_detections(
        {"cls_logits": logits, "bbox_regression": change}, theirs(model), [ssd.SIZE]
    )
    found = ssd.decode(torch.cat([logits, change], -1).numpy(), ssd.SIZE)
    assert len(expected["boxes"]) > 20
    assert len(found.boxes) == min(coco.MOST, len(expected["boxes"]))
    first = slice(0, len(found.boxes))  # both are sorted; torchvision's may be more
    ids = np.array(list(ssd.classes()))[found.labels]
    assert ids.tolist() == expected["labels"][first].tolist()
    np.testing.assert_allclose(found.scores, expected["scores"][first], atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected["boxes"][first], atol=1e-2)


def test_pictures_are_scaled_as_it_was_trained():
    picture = np.zeros((64, 48, 3), np.uint8)
    picture[:32] = 255
    given = ssd.prepare(picture)
    assert given.shape == (1, 3, 320, 320)
    assert (given.min(), given.max()) == (-1, 1)
    ssd.check_input(given, picture=picture)
    with pytest.raises(DataError, match="near-black"):
        ssd.check_input(ssd.prepare((picture / 255).astype(np.uint8)))
    with pytest.raises(DataError, match="shades"):
        ssd.check_input(picodet.prepare(picture, ssd.SIZE))
    for shape in ((1, 9, 95), (1, 3234, 96), (2, 3234, 95), (3234, 95)):
        with pytest.raises(DataError, match="default boxes"):
            ssd.decode(np.zeros(shape, np.float32), (5, 5))


def test_classes_are_cocos():
    names = ssd.classes()
    assert len(names) == 80
    assert (names[1], names[90]) == ("person", "toothbrush")  # ids have gaps


def test_its_weights_are_fetched_and_read(home, server, monkeypatch):
    model = ssd.build()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    server.files["/ssd.pth"] = buffer.getvalue()
    real = assets.get("ssdlite-mobilenet", "full").spec
    url = torchvision.models.get_weight(real["weights"]).url
    assert f"-{real['sha256'][:8]}." in url
    monkeypatch.setattr(
        torchvision.models, "get_weight",
        lambda name: SimpleNamespace(url=f"{server.url}/ssd.pth"),
    )  # fmt: skip
    spec = {**real, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    entry = {"title": "a detector", "kind": "model", "licence": "MIT",
             "citation": "nobody", "notebooks": [], "mini": spec}  # fmt: skip
    monkeypatch.setattr(catalog, "_entries", lambda: {"ssdlite": entry})
    folder = assets.fetch("ssdlite")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name])
    pixels = torch.rand(1, 3, *ssd.SIZE)
    with torch.inference_mode():
        found = ssd.load(folder)(pixels)
        assert torch.equal(found, ssd.Whole(model.eval())(pixels))
    assert found.shape == (1, len(ssd.default_boxes()), 91 + 4)


def test_a_folder_without_its_weights(tmp_path):
    with pytest.raises(AssetError, match="fetch ssdlite-mobilenet"):
        ssd.load(tmp_path)


def test_a_detector_that_a_profile_does_not_have(monkeypatch):
    with pytest.raises(DataError, match="it has picodet"):
        detectors.load("detr")
    monkeypatch.setenv("MICROBUDGET_PROFILE", "full")
    with pytest.raises(DataError, match="it has detr, ssdlite"):
        detectors.load("picodet")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("onnxscript"), reason="the export extra")
def test_it_is_exported_whole_and_quantized(tmp_path, home, monkeypatch):
    """From a safetensors file to boxes in ONNX Runtime; the weights are random."""
    import onnx

    from microbudget import mixed_int8, runtimes

    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in ssd.build().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setenv("MICROBUDGET_PROFILE", "full")
    monkeypatch.setattr(detectors.assets, "fetch", lambda name: tmp_path)
    own = detectors.load("ssdlite")
    names = list(mixed_int8.convolutions(own.network))
    assert len(names) == 98
    graph = onnx.load(own.network).graph
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    out = {node.name: sizes[node.input[1]][0] for node in graph.node
           if node.op_type == "Conv"}  # fmt: skip
    widths = {part: [out[name] for name in names[at]] for part, at in own.parts.items()}
    assert widths["heads"].count(91 * 6) == len(ssd.GRIDS)  # classes of six boxes
    assert widths["heads"].count(4 * 6) == len(ssd.GRIDS)  # and how to change them
    assert not any(91 * 6 in widths[part] for part in list(widths)[:-1])
    assert widths["extra stages"][0] == 256  # torchvision's first extra
    assert (own.mean == ssd.MEAN).all()
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    session = runtimes.load(own.network, "onnxruntime")
    assert own.find(session, picture).boxes.shape[1] == 4
    found = ssd.decode(session(own.prepare(picture)), (60, 90), least=0)
    assert len(found.boxes) == coco.MOST
    bx.checked(found.boxes, (60, 90))
