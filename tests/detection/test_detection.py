"""Boxes, pages, PicoDet's input and output, COCO's precision and its spread."""

import json
from importlib.util import find_spec

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from microbudget.core.errors import DataError, EvaluationError
from microbudget.data.synthetic.pages import generate, typeset
from microbudget.detection import boxes as bx
from microbudget.detection import coco, detectors, detr, picodet, preprocess
from microbudget.plotting import boxes as drawing

corners = st.tuples(*[st.integers(0, 60)] * 4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)
some_boxes = st.lists(corners, min_size=1, max_size=8).map(
    lambda v: np.array(v, np.float32)
)


@given(some_boxes, some_boxes)
def test_iou_is_what_pycocotools_computes(a, b):
    ours = bx.iou(a, b)
    theirs = coco_mask.iou(
        bx.to_coco_boxes(a).astype(float),
        bx.to_coco_boxes(b).astype(float),
        [0] * len(b),
    )
    # of empty boxes pycocotools' 0/0 is not a number
    np.testing.assert_allclose(ours, np.nan_to_num(theirs), atol=1e-5)
    np.testing.assert_allclose(ours, bx.iou(b, a).T, atol=1e-6)


@given(some_boxes)
def test_cocos_form_and_back(own):
    np.testing.assert_allclose(
        bx.from_coco_boxes(bx.to_coco_boxes(own)), own, atol=1e-4
    )


@given(some_boxes)
def test_resizing_there_and_back(own):
    there = bx.rescale_boxes(own, (64, 64), (128, 32))
    np.testing.assert_allclose(there[:, 0], own[:, 0] / 2, atol=1e-4)
    np.testing.assert_allclose(there[:, 1], own[:, 1] * 2, atol=1e-4)
    np.testing.assert_allclose(
        bx.rescale_boxes(there, (128, 32), (64, 64)), own, atol=1e-3
    )


@given(some_boxes, st.sampled_from([0.1, 0.5, 0.9]))
@example(np.array([[0, 5, 25, 28], [0, 16, 5, 33]], np.float32), 0.1)  # 0.1 overlaps
def test_suppression_keeps_the_best_and_nothing_that_overlaps_it(own, threshold):
    scores = np.linspace(1, 0.1, len(own), dtype=np.float32)
    kept = bx.nms(own, scores, threshold)
    assert kept[0] == 0
    assert (np.diff(scores[kept]) < 0).all()
    overlap = bx.iou(own, own)
    among = overlap[np.ix_(kept, kept)]  # float32, as the threshold is compared
    np.fill_diagonal(among, 0)
    assert (among <= threshold).all()
    for gone in set(range(len(own))) - set(kept.tolist()):
        assert (overlap[gone, kept[kept < gone]] > threshold).any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((3, 5)), "must be"),
        ([[0, 0, np.nan, 1]], "not a number"),
        ([[5, 5, 3, 9]], "ends before it begins"),
        ([[0, 0, 30, 90]], "swapped"),
        ([[-4, 0, 30, 20]], "swapped"),
    ],
)
def test_boxes_that_break_the_convention_are_refused(wrong, says):
    with pytest.raises(DataError, match=says):
        bx.check_boxes(wrong, (40, 60))


@pytest.fixture(scope="module")
def three():
    return generate.generate(3, 5)


def test_pages_are_the_same_for_a_seed_and_share_nothing_between_seeds(three):
    again = generate.generate(1, 5)[0]
    np.testing.assert_array_equal(three[0].image, again.image)
    np.testing.assert_array_equal(three[0].boxes, again.boxes)
    other = generate.generate(1, 6)[0]
    assert other.image.shape != again.image.shape or (other.image != again.image).any()


def test_formulas_dont_depend_on_the_size_of_letters_in_plots():
    formula, plain = r"$e^{i\pi} = -1$", typeset._render_formula
    with matplotlib.rc_context({"font.size": 17}):
        larger = plain.__wrapped__(formula)
    assert larger.tobytes() == plain.__wrapped__(formula).tobytes()


def test_boxes_of_a_page_hold_its_ink(three):
    """What is dark stands in a box, and every box holds something dark."""
    for page in three:
        bx.check_boxes(page.boxes, page.image.shape[:2])
        assert page.image.dtype == np.uint8
        assert set(page.labels) <= set(range(len(generate.CLASSES)))
        grey = page.image.mean(2)
        outside = np.ones(grey.shape, bool)
        for x0, y0, x1, y1 in page.boxes.astype(int):
            inside = grey[y0 : y1 + 1, x0 : x1 + 1]
            assert inside.min() < 0.6 * np.median(grey)
            outside[max(0, y0 - 2) : y1 + 4, max(0, x0 - 2) : x1 + 4] = False
        assert (grey[outside] < 0.6 * np.median(grey)).mean() < 1e-3


def prepare(image):
    return preprocess.prepare_image(image, picodet.SIZE)


def check(array, image=None):
    preprocess.check_input(array, picodet.SIZE, image)


def test_an_image_is_prepared_as_the_network_was_trained():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*picodet.SIZE, 3), np.uint8)  # no resizing
    own = prepare(image)
    back = own[0].transpose(1, 2, 0) * preprocess.STD + preprocess.MEAN
    np.testing.assert_allclose(back * 255, image, atol=1e-3)
    check(own)
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
        lambda p: prepare(p)[:, :, :-8],
        lambda p: prepare(p).astype(np.float64),
    ],
)
def test_an_input_prepared_wrongly_is_refused(spoil):
    image = np.full((*picodet.SIZE, 3), 250, np.uint8)
    image[100:200] = 10
    with pytest.raises(DataError):
        check(spoil(image))


def test_a_dark_photograph_is_no_mistake():
    dark = np.random.default_rng(0).integers(0, 12, (300, 200, 3), np.uint8)
    given = prepare(dark)
    check(given, image=dark)
    bright = np.full_like(dark, 200)
    divided = (bright / 255 + 0.5).astype(np.uint8)
    for array, image in (
        (given, None), (given, bright), (prepare(divided), divided),
    ):  # fmt: skip
        with pytest.raises(DataError, match="near-black"):
            check(array, image=image)


def _outputs(place, stride, label, edges, sure=0.9):
    """The network's outputs for one object at a place of one grid."""
    scores, boxes = [], []
    for each in picodet.STRIDES:
        count = len(picodet.grid_positions(each))
        scores.append(np.zeros((1, count, 10), np.float32))
        boxes.append(np.zeros((1, count, 32), np.float32))
        if each == stride:
            scores[-1][0, place, label] = sure
            for side, distance in enumerate(edges):
                low = int(distance)
                share = distance - low
                logits = np.full(8, -40.0)
                logits[low] = np.log(max(1 - share, 1e-9))
                logits[min(low + 1, 7)] = np.log(max(share, 1e-9))
                boxes[-1][0, place, 8 * side : 8 * side + 8] = logits
    return (*scores, *boxes)


@given(
    st.sampled_from(picodet.STRIDES),
    st.integers(0, 9),
    arrays(np.float32, 4, elements=st.floats(0.25, 6.75, width=32)),
)
def test_a_box_is_decoded_from_its_distances(stride, label, edges):
    places = picodet.grid_positions(stride)
    place = len(places) // 2
    size = picodet.SIZE[0] * 2, picodet.SIZE[1] * 3
    found = picodet.decode(_outputs(place, stride, label, edges), size)
    x, y = places[place, :2]
    left, top, right, bottom = edges * stride
    expected = np.array([x - left, y - top, x + right, y + bottom]) * [3, 2, 3, 2]
    expected = expected.clip(0, [size[1], size[0]] * 2)
    assert found.labels.tolist() == [label]
    np.testing.assert_allclose(found.boxes[0], expected, atol=0.05)
    np.testing.assert_allclose(found.scores, 0.9)


def test_nothing_found_and_another_networks_outputs():
    nothing = _outputs(3, 8, 1, [1, 1, 1, 1], sure=0.01)
    found = picodet.decode(nothing, (100, 100))
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == np.int64
    with pytest.raises(DataError, match="outputs"):
        picodet.decode(nothing[:3], (100, 100))
    with pytest.raises(DataError, match="positions"):
        picodet.decode((*nothing[1:4], nothing[0], *nothing[4:]), (100, 100))


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
        image.save(folder / own["file_name"])
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
    folder.mkdir()
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
    (folder / "0.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match="can't be read"):
        detectors.load_data(1, 1)


def test_a_kept_network_has_its_makers_name(home):
    names = {
        detectors._cached("net", digest, maker)
        for digest in ("0" * 64, "1" * 64)
        for maker in ("torch-1", "torch-2")
    }
    assert len(names) == 4
    assert all(home in name.parents for name in names)


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
    path = detr.export(model, tmp_path / "detr.onnx", (64, 96))
    assert path.stat().st_size > 0
    given = torch.zeros(1, 3, 64, 96)
    output = model(given).detach()
    assert output.shape == (1, 5, 7 + 1 + 4)
    found = detr.decode(output, (100, 200), ids=[1, 3, 4], score_threshold=0)
    assert found.boxes.shape == (5, 4)


@pytest.fixture(scope="module")
def guesses(three):
    """Detections that are partly right, partly shifted, doubled, missing or wrong."""
    rng = np.random.default_rng(0)
    guessed = []
    for page in three:
        keep = rng.random(len(page.boxes)) < 0.8
        own = np.repeat(page.boxes[keep], 2, 0)
        moved = own + rng.normal(0, 4, own.shape).astype(np.float32)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        labels = np.repeat(page.labels[keep], 2)
        swap = rng.random(len(labels)) < 0.2
        labels[swap] = rng.integers(0, 10, swap.sum())
        scores = rng.random(len(labels)).astype(np.float32)
        guessed.append(coco.Detections(moved, scores, labels))
    return guessed


def _references(annotations, guessed):
    """COCOeval as anybody would call it."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluator = COCOeval(
            truth, truth.loadRes(coco.to_coco_results(guessed, annotations)), "bbox"
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:2]


@pytest.mark.parametrize("crowd", [False, True])
def test_precision_is_pycocotools_and_so_is_the_sum_over_images(three, guesses, crowd):
    annotations = json.loads(json.dumps(coco.to_coco(three, generate.CLASSES)))
    for note in annotations["annotations"][::5]:
        note["iscrowd"] = int(crowd)
    before = json.dumps(annotations)
    result = coco.evaluate(guesses, annotations)
    assert json.dumps(annotations) == before
    mean, at_50 = _references(annotations, guesses)
    assert 0.1 < mean < 0.9
    assert result.mean_ap == pytest.approx(mean, abs=1e-9)
    assert result.ap50 == pytest.approx(at_50, abs=1e-9)
    again = result.mean_ap_of(np.arange(3))
    assert again == pytest.approx(mean, abs=1e-9)


def test_a_selection_of_images_is_judged_as_if_it_were_all(three, guesses):
    result = coco.evaluate(guesses, coco.to_coco(three, generate.CLASSES))
    for chosen in ([2], [0, 2], [1, 1, 0]):
        some = [three[i] for i in chosen]
        alone = coco.evaluate(
            [guesses[i] for i in chosen], coco.to_coco(some, generate.CLASSES)
        )
        found = result.mean_ap_of(np.array(chosen))
        assert found == pytest.approx(alone.mean_ap, abs=1e-9)


def test_the_truth_scores_one_and_nothing_scores_zero(three):
    annotations = coco.to_coco(three, generate.CLASSES)
    perfect = [
        coco.Detections(p.boxes, np.ones(len(p.boxes), np.float32), p.labels)
        for p in three
    ]
    assert coco.evaluate(perfect, annotations).mean_ap == pytest.approx(1)
    nothing = [f.above(2) for f in perfect]
    assert coco.evaluate(nothing, annotations).mean_ap == 0
    off = [coco.Detections(f.boxes, f.scores, (f.labels + 1) % 10) for f in perfect]
    assert coco.evaluate(off, annotations).mean_ap < 0.2


def test_at_an_iou_of_a_half_only_if_it_was_judged(three, guesses):
    annotations = coco.to_coco(three, generate.CLASSES)
    assert np.isnan(coco.evaluate(guesses, annotations, (0.01,)).ap50)
    only = coco.evaluate(guesses, annotations, (0.75, 0.5))
    whole = coco.evaluate(guesses, annotations)
    assert only.ap50 == pytest.approx(whole.ap50)


def test_the_spread_is_paired(three, guesses):
    annotations = coco.to_coco(three, generate.CLASSES)
    result = coco.evaluate(guesses, annotations)
    drawn = coco.bootstrap({"a": result, "b": result}, 20)
    np.testing.assert_array_equal(drawn["a"], drawn["b"])
    assert drawn["a"].std() > 0
    fewer = coco.evaluate(guesses[:2], coco.to_coco(three[:2], generate.CLASSES))
    with pytest.raises(EvaluationError, match="different images"):
        coco.bootstrap({"a": result, "b": fewer}, 3)
    with pytest.raises(EvaluationError, match="2 images"):
        coco.evaluate(guesses[:2], annotations)
    with pytest.raises(EvaluationError, match="no annotations"):
        coco.evaluate(guesses, annotations | {"annotations": []})
    crowds = [note | {"iscrowd": 1} for note in annotations["annotations"]]
    with pytest.raises(EvaluationError, match="crowds only"):
        coco.evaluate(guesses, annotations | {"annotations": crowds})
    others = annotations | {"annotations": annotations["annotations"][1:]}
    one_less = coco.evaluate(guesses, others)
    with pytest.raises(EvaluationError, match="different images"):
        coco.bootstrap({"a": result, "b": one_less}, 3)
    unsure = [coco.Detections(f.boxes, f.scores * np.nan, f.labels) for f in guesses]
    with pytest.raises(EvaluationError, match="not a number"):
        coco.evaluate(unsure, annotations)


def test_an_image_is_drawn_with_each_set_of_boxes(three, guesses):
    axes = drawing.compare_boxes(
        three[0].image, {"drawn": three[0], "guessed": guesses[0]}, generate.CLASSES
    )
    counts = [len(axis.patches) for axis in axes.flat]
    assert counts == [len(three[0].boxes), len(guesses[0].boxes)]
