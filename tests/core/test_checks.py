"""Values as people have them: taken as what they mean, or refused in one sentence."""

import numpy as np
import pytest
import torch

from microbudget.core.checks import as_labels, as_mask, as_texts
from microbudget.core.errors import DataError, TrainingError


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 2], (0, 1, 2), np.array([0, 1, 2], np.int32), torch.arange(3).int(),
        torch.arange(3, dtype=torch.uint8), np.array([0, 1, 2], np.uint16),
    ],
)  # fmt: skip
def test_whole_numbers_of_any_type_are_labels(labels):
    found = as_labels(labels, 3, DataError, count=3)
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a", "b", "c"], r"whole numbers from 0, one.*sorted\(set\(labels\)\)"),
        ([0.0, 0.7, 1.0], "whole numbers"), ([1, 2, 3], "from 1 to 3.*Subtract 1"),
        ([-1, 0, 1], "from -1 to 1"), ([0, 1], "2 labels for 3 items"),
        (torch.zeros(3, 2), "whole numbers"), ([0, None, 1], "whole numbers"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused(labels, says):
    with pytest.raises(TrainingError, match=says):
        as_labels(labels, 3, TrainingError, count=3)


def test_texts_are_lists_of_text():
    assert as_texts(np.array(["a", "b"]), DataError, "texts") == ["a", "b"]
    assert as_texts([("a", "b")], DataError, "texts") == [("a", "b")]
    for bad, says in (
        ("cat", "One string was given as texts: put it into a list"),
        (["a", None], "Number 1 of the texts is None"),
        (["a", float("nan")], "Number 1 of the texts is nan"),
    ):
        with pytest.raises(DataError, match=says):
            as_texts(bad, DataError, "texts")


def test_masks_of_zeros_and_ones_are_masks():
    mask = as_mask(torch.tensor([[1.0, 0.0]]), (1, 2), TrainingError, "a")
    assert mask.dtype == torch.bool and mask.tolist() == [[True, False]]
    with pytest.raises(TrainingError, match="zeros and ones only"):
        as_mask(torch.tensor([[0.5, 0.0]]), (1, 2), TrainingError, "a")
    with pytest.raises(TrainingError, match=r"mask \(1, 2\) on a weight \(2, 2\)"):
        as_mask(torch.ones(1, 2), (2, 2), TrainingError, "a")
