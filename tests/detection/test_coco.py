"""Mean average precision and its spread, against pycocotools."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from microbudget.core.errors import EvaluationError
from microbudget.data.synthetic import pages
from microbudget.detection import coco
from microbudget.plotting import compare_boxes


@pytest.fixture(scope="module")
def three():
    return pages.generate(3, 5)


@pytest.fixture
def annotations(three):
    return coco.to_coco(three, pages.CLASSES)


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
def test_precision_is_pycocotools_and_so_is_the_sum_over_images(
    guesses, annotations, crowd
):
    for row in annotations["annotations"][::5]:
        row["iscrowd"] = int(crowd)
    before = json.dumps(annotations)
    result = coco.evaluate(guesses, annotations)
    assert json.dumps(annotations) == before
    mean, ap50 = _references(annotations, guesses)
    assert 0.1 < mean < 0.9
    assert result.mean_ap == pytest.approx(mean, abs=1e-9)
    assert result.ap50 == pytest.approx(ap50, abs=1e-9)
    again = result.mean_ap_of(np.arange(3))
    assert again == pytest.approx(mean, abs=1e-9)


def test_a_selection_of_images_is_evaluated_as_if_it_were_all(
    three, guesses, annotations
):
    result = coco.evaluate(guesses, annotations)
    for chosen in ([2], [0, 2], [1, 1, 0]):
        some = [three[i] for i in chosen]
        alone = coco.evaluate(
            [guesses[i] for i in chosen], coco.to_coco(some, pages.CLASSES)
        )
        found = result.mean_ap_of(np.array(chosen))
        assert found == pytest.approx(alone.mean_ap, abs=1e-9)


def test_the_truth_scores_one_and_nothing_scores_zero(three, annotations):
    perfect = [
        coco.Detections(p.boxes, np.ones(len(p.boxes), np.float32), p.labels)
        for p in three
    ]
    assert coco.evaluate(perfect, annotations).mean_ap == pytest.approx(1)
    assert np.isnan(coco.evaluate(perfect, annotations, (0.01,)).ap50)
    nothing = [f.above(2) for f in perfect]
    assert coco.evaluate(nothing, annotations).mean_ap == 0
    off = [coco.Detections(f.boxes, f.scores, (f.labels + 1) % 10) for f in perfect]
    assert coco.evaluate(off, annotations).mean_ap < 0.2


def test_the_spread_is_paired(three, guesses, annotations):
    result = coco.evaluate(guesses, annotations)
    drawn = coco.bootstrap({"a": result, "b": result}, 20)
    np.testing.assert_array_equal(drawn["a"], drawn["b"])
    assert drawn["a"].std() > 0
    fewer = coco.evaluate(guesses[:2], coco.to_coco(three[:2], pages.CLASSES))
    with pytest.raises(EvaluationError, match="different images"):
        coco.bootstrap({"a": result, "b": fewer}, 3)


def test_detections_of_other_images_and_nothing_to_find_are_said(guesses, annotations):
    with pytest.raises(EvaluationError, match="2 images"):
        coco.evaluate(guesses[:2], annotations)
    crowds = [row | {"iscrowd": 1} for row in annotations["annotations"]]
    for rows in ([], crowds):
        with pytest.raises(EvaluationError, match="no annotations"):
            coco.evaluate(guesses, annotations | {"annotations": rows})


def test_an_image_is_drawn_with_each_set_of_boxes(three, guesses):
    axes = compare_boxes(
        three[0].image, {"drawn": three[0], "guessed": guesses[0]}, pages.CLASSES
    )
    counts = [len(axis.patches) for axis in axes.flat]
    assert counts == [len(three[0].boxes), len(guesses[0].boxes)]
