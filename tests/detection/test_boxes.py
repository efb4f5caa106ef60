"""Boxes: one convention, against pycocotools."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from microbudget.core.errors import DataError
from microbudget.detection import boxes as bx

corners = st.tuples(*[st.integers(0, 60)] * 4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)
some_boxes = st.lists(corners, min_size=1, max_size=8).map(
    lambda v: np.array(v, np.float32)
)


@given(some_boxes, some_boxes)
def test_iou_is_what_pycocotools_computes(a, b):
    ours = bx.iou(a, b)
    coco_a, coco_b = (bx.to_coco_boxes(own).astype(float) for own in (a, b))
    theirs = coco_mask.iou(coco_a, coco_b, [0] * len(b))
    # of empty boxes pycocotools' 0/0 is not a number
    np.testing.assert_allclose(ours, np.nan_to_num(theirs), atol=1e-5)


@given(some_boxes)
def test_cocos_form_and_resizing_there_and_back(own):
    again = bx.from_coco_boxes(bx.to_coco_boxes(own))
    np.testing.assert_allclose(again, own, atol=1e-4)
    there = bx.rescale_boxes(own, (64, 64), (128, 32))
    np.testing.assert_allclose(there, own * [0.5, 2, 0.5, 2], atol=1e-4)
    again = bx.rescale_boxes(there, (128, 32), (64, 64))
    np.testing.assert_allclose(again, own, atol=1e-3)


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
        ([[0, 0, np.nan, 1]], "ends before it begins"),
        ([[5, 5, 3, 9]], "ends before it begins"),
        ([[0, 0, 30, 90]], "swapped"),
        ([[-4, 0, 30, 20]], "swapped"),
    ],
)
def test_boxes_that_break_the_convention_are_refused(wrong, says):
    with pytest.raises(DataError, match=says):
        bx.check_boxes(wrong, (40, 60))
