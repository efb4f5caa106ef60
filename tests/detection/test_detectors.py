"""What goes into the two networks, and how their outputs become boxes; the data."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from microbudget.core.errors import DataError
from microbudget.detection import coco, detectors, detr, picodet, preprocess
from microbudget.export.onnx import export_module


def prepare(image):
    return preprocess.prepare_image(image, picodet.SIZE)


def test_an_image_is_prepared_as_the_network_was_trained():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*picodet.SIZE, 3), np.uint8)  # no resizing
    own = prepare(image)
    back = own[0].transpose(1, 2, 0) * preprocess.STD + preprocess.MEAN
    np.testing.assert_allclose(back * 255, image, atol=1e-3)
    preprocess.check_input(own)
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)):
        with pytest.raises(DataError, match="uint8"):
            prepare(wrong)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: prepare((p / 255).astype(np.uint8)),
        lambda p: prepare(p) * 0 + prepare(p * 0),
        lambda p: prepare(p) / 255 - 1.9,
        lambda p: p[None].transpose(0, 3, 1, 2).astype(np.float32),
    ],
)
def test_an_input_prepared_wrongly_is_refused(spoil):
    image = np.full((*picodet.SIZE, 3), 250, np.uint8)
    image[100:200] = 10
    with pytest.raises(DataError):
        preprocess.check_input(spoil(image))


def test_a_dark_photograph_is_no_mistake():
    dark = np.random.default_rng(0).integers(0, 12, (300, 200, 3), np.uint8)
    given = prepare(dark)
    preprocess.check_input(given, dark)
    bright = np.full_like(dark, 200)
    divided = (bright / 255 + 0.5).astype(np.uint8)
    for array, image in (
        (given, None), (given, bright), (prepare(divided), divided),
    ):  # fmt: skip
        with pytest.raises(DataError, match="near-black"):
            preprocess.check_input(array, image)


def _outputs(position, stride, label, edges, sure=0.9):
    """The network's outputs for one object at a position of one grid."""
    scores, boxes = [], []
    for each in picodet.STRIDES:
        count = len(picodet.grid_positions(each))
        scores.append(np.zeros((1, count, 10), np.float32))
        boxes.append(np.zeros((1, count, 32), np.float32))
        if each == stride:
            scores[-1][0, position, label] = sure
            for side, distance in enumerate(edges):
                low = int(distance)
                rest = distance - low
                logits = np.full(8, -40.0)
                logits[low] = np.log(max(1 - rest, 1e-9))
                logits[min(low + 1, 7)] = np.log(max(rest, 1e-9))
                boxes[-1][0, position, 8 * side : 8 * side + 8] = logits
    return (*scores, *boxes)


@given(
    st.sampled_from(picodet.STRIDES),
    st.integers(0, 9),
    arrays(np.float32, 4, elements=st.floats(0.25, 6.75, width=32)),
)
def test_a_box_is_decoded_from_its_distances(stride, label, edges):
    positions = picodet.grid_positions(stride)
    position = len(positions) // 2
    size = picodet.SIZE[0] * 2, picodet.SIZE[1] * 3
    found = picodet.decode(_outputs(position, stride, label, edges), size)
    x, y = positions[position, :2]
    left, top, right, bottom = edges * stride
    expected = np.array([x - left, y - top, x + right, y + bottom]) * [3, 2, 3, 2]
    expected = expected.clip(0, [size[1], size[0]] * 2)
    assert found.labels.tolist() == [label]
    np.testing.assert_allclose(found.boxes[0], expected, atol=0.05)
    np.testing.assert_allclose(found.scores, 0.9)


def test_nothing_found_is_an_empty_list():
    found = picodet.decode(_outputs(3, 8, 1, [1, 1, 1, 1], sure=0.01), (100, 100))
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == np.int64


def test_detrs_boxes_and_the_gaps_in_cocos_ids():
    output = np.full((1, 3, 6 + 4), -9.0, np.float32)  # five ids and "nothing"
    output[0, 0, 4], output[0, 0, -4:] = 9, (0.5, 0.5, 0.2, 0.4)
    output[0, 1, 5] = 9  # nothing
    output[0, 2, 2] = 9  # an id that no class has
    found = detr.decode(output, (100, 200), ids=[1, 3, 4])
    assert found.labels.tolist() == [2]
    np.testing.assert_allclose(found.boxes, [[80, 30, 120, 70]], atol=1e-3)


def _like_coco(folder, count=2):
    """A folder as COCO's, of images and boxes whose ids have gaps and no order."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        own = {"id": 50 - 7 * i, "file_name": f"{i}.jpg", "width": 60, "height": 40}
        images.append(own)
        image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
        image.save(folder / "val2017" / own["file_name"])
        for crowd, category in ((0, 9), (0, 4), (1, 4)):
            annotations.append({
                "id": len(annotations) + 1, "image_id": own["id"], "iscrowd": crowd,
                "category_id": category, "bbox": [5, 6, 20, 10], "area": 200,
            })  # fmt: skip
    kinds = [{"id": 9, "name": "cup"}, {"id": 4, "name": "cat"}]
    whole = {"images": images, "annotations": annotations, "categories": kinds}
    table = folder / "instances_val2017.json"
    table.write_text(json.dumps(whole), encoding="utf-8")


def test_cocos_images_come_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROBUDGET_PROFILE", "full")
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path))
    with pytest.raises(DataError, match="instances_val2017"):
        detectors.load_data(1, 1)
    folder = tmp_path / "coco"
    (folder / "val2017").mkdir(parents=True)
    _like_coco(folder)
    found = detectors.load_data(1, 1)
    assert "Flickr" in found.card
    assert not found.is_course_data
    ids = [
        found.annotations[kind]["images"][0]["id"] for kind in ("calibration", "test")
    ]
    assert sorted(ids) == [43, 50]
    (page,) = found.test
    assert page.image.shape == (40, 60, 3)
    assert page.labels.tolist() == [1, 0]  # sorted by id; no crowd
    np.testing.assert_array_equal(page.boxes, [[5, 6, 25, 16]] * 2)
    right = [coco.Detections(page.boxes, np.ones(2, np.float32), page.labels)]
    assert coco.evaluate(right, found.annotations["test"]).mean_ap == pytest.approx(1)
    with pytest.raises(DataError, match="too few"):
        detectors.load_data(2, 1)
    (folder / "val2017" / "0.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match="can't be read"):
        detectors.load_data(1, 1)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("onnxscript"), reason="the export extra")
def test_a_small_detr_is_exported_whole(tmp_path):
    import transformers

    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, num_queries=5, num_labels=7, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = detr.SingleOutputDetr(transformers.DetrForObjectDetection(config)).eval()
    given = torch.randn(1, 3, 64, 96)
    path = export_module(
        model, tmp_path / "detr.onnx", {"image": given}, {}, output="found"
    )
    assert path.stat().st_size > 0
    output = model(given).detach()
    assert output.shape == (1, 5, 7 + 1 + 4)
    found = detr.decode(output, (100, 200), ids=[1, 3, 4])
    assert found.boxes.shape == (5, 4)
