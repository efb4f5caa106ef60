"""Generated pages: reproducible, and their boxes hold the ink."""

import matplotlib
import numpy as np
import pytest

from microbudget.data.synthetic import pages
from microbudget.data.synthetic.pages import typeset
from microbudget.detection.boxes import check_boxes


@pytest.fixture(scope="module")
def three():
    return pages.generate(3, 5)


def test_pages_are_the_same_for_a_seed_and_share_nothing_between_seeds(three):
    again = pages.generate(1, 5)[0]
    np.testing.assert_array_equal(three[0].image, again.image)
    np.testing.assert_array_equal(three[0].boxes, again.boxes)
    other = pages.generate(1, 6)[0]
    assert other.image.shape != again.image.shape or (other.image != again.image).any()


def test_formulas_dont_depend_on_the_size_of_letters_in_plots():
    formula, plain = r"$e^{i\pi} = -1$", typeset._render_formula
    with matplotlib.rc_context({"font.size": 17}):
        larger = plain.__wrapped__(formula)
    assert larger.tobytes() == plain.__wrapped__(formula).tobytes()


def test_boxes_of_a_page_hold_its_ink(three):
    """What is dark stands in a box, and every box holds something dark."""
    for page in three:
        check_boxes(page.boxes, page.image.shape[:2])
        assert page.image.dtype == np.uint8
        assert set(page.labels) <= set(range(len(pages.CLASSES)))
        grey = page.image.mean(2)
        outside = np.ones(grey.shape, bool)
        for x0, y0, x1, y1 in page.boxes.astype(int):
            inside = grey[y0 : y1 + 1, x0 : x1 + 1]
            assert inside.min() < 0.6 * np.median(grey)
            outside[max(0, y0 - 2) : y1 + 4, max(0, x0 - 2) : x1 + 4] = False
        assert (grey[outside] < 0.6 * np.median(grey)).mean() < 1e-3
