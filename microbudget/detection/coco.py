"""Mean average precision as COCO defines it, by pycocotools, with its spread.

A detection is right when its class is and its box overlaps the true one by an IoU of at
least t, each true box found once. Average precision (AP) is the area under precision
over recall, at 101 recalls; mAP is its mean over classes and t = 0.50, 0.55 ... 0.95
(Lin et al. 2014, arXiv:1405.0312, and the evaluator that goes with it).
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..core.errors import EvaluationError
from .boxes import MAX_DETECTIONS, check_boxes, to_coco_boxes

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10))
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Detections:
    """What a detector found in an image.

    Attributes:
        boxes: float32 (n, 4), ``x0, y0, x1, y1`` in pixels of the original image.
        scores: float32 (n,), 0...1.
        labels: int64 (n,), indices of classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def above(self, score_threshold: float) -> "Detections":
        """Those with at least this score."""
        keep = self.scores >= score_threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


class _Match(NamedTuple):
    """What pycocotools matched, for one class in one image."""

    scores: np.ndarray  # (detections,)
    true_positives: np.ndarray  # bool (thresholds, detections)
    false_positives: np.ndarray  # the others, but for detections in a crowd
    targets: int  # boxes to find


@dataclass(frozen=True)
class DetectionResult:
    """How precise detections are, and what any selection of the images would give.

    Attributes:
        mean_ap, ap50: mAP, and AP at an IoU of 0.5 (NaN: not among the thresholds).
        ap_by_class: AP of each class (NaN: no image holds one).
        matches: [class][image], all that is needed to add up any selection; None:
            neither found nor to be found.
    """

    mean_ap: float
    ap50: float
    ap_by_class: np.ndarray
    matches: list[list[_Match | None]] = field(repr=False)

    def __str__(self) -> str:
        return f"mAP {self.mean_ap:.3f}, at an IoU of a half {self.ap50:.3f}"

    def mean_ap_of(self, images: Sequence[int]) -> float:
        """mAP over some of the images, by their indices, which may repeat.

        The same sum that pycocotools makes, over what it has matched before, four times
        as fast as its own loops in Python: the bootstrap adds up hundreds of times.
        """
        values = []
        for matches in self.matches:
            chosen = [matches[i] for i in images if matches[i]]
            targets = sum(match.targets for match in chosen)
            if targets:
                values.append(_average_precision(chosen, targets))
        return float(np.mean(values)) if values else float("nan")


def to_coco(images: Sequence, classes: Sequence[str]) -> dict:
    """Annotated images as a COCO dictionary: images, annotations, categories.

    Category ids are indices of ``classes`` **plus one**, as COCO counts: 0 is nothing.

    Args:
        images: ``AnnotatedImage`` each.
    """
    rows, annotations = [], []
    for i, item in enumerate(images, start=1):
        height, width = item.image.shape[:2]
        rows.append({"id": i, "width": width, "height": height})
        boxes = to_coco_boxes(check_boxes(item.boxes, (height, width)))
        areas = boxes[:, 2] * boxes[:, 3]
        for box, area, label in zip(boxes, areas, item.labels, strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": i,
                "category_id": int(label) + 1, "bbox": box.tolist(),
                "area": float(area), "iscrowd": 0,
            })  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return {"images": rows, "annotations": annotations, "categories": categories}


def evaluate(
    detections: Sequence[Detections],
    annotations: dict,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> DetectionResult:
    """Compare detections with COCO annotations.

    Args:
        detections: of each of ``annotations["images"]``, which are sorted by id, as are
            the categories.
        iou_thresholds: the course uses others only to show what they hide.

    Raises:
        EvaluationError: other images than annotated, or nothing annotated but crowds.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # Copies, because pycocotools writes into them.
    targets = [dict(target) for target in annotations["annotations"]]
    if all(target["iscrowd"] for target in targets):
        raise EvaluationError(
            "The images have no annotations, or of crowds only: nothing to find."
        )
    # pycocotools can't read an empty list: a box without size finds nothing, either.
    nothing = {"image_id": targets[0]["image_id"], "bbox": [0, 0, 0, 0], "score": 0.0,
               "category_id": targets[0]["category_id"]}  # fmt: skip
    rows = to_coco_results(detections, annotations) or [nothing]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables of its own
        truth = COCO()
        truth.dataset = annotations | {"annotations": targets}
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.params.iouThrs = np.asarray(iou_thresholds, float)
        evaluator.params.areaRng = [[0, 1e10]]  # boxes of any size
        evaluator.params.areaRngLbl = ["all"]
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
        evaluator.accumulate()
    table = evaluator.eval["precision"][..., 0, 0]  # (thresholds, recalls, classes)
    known = table.min((0, 1)) > -1  # it writes −1 where there is nothing to find
    ap_by_class = np.where(known, table.mean((0, 1)), np.nan)
    half = np.isclose(iou_thresholds, 0.5)
    ap50 = float(table[half][..., known].mean()) if half.any() else float("nan")
    matches = [own and _match(own) for own in evaluator.evalImgs]
    count = len(annotations["images"])
    matches = [matches[i : i + count] for i in range(0, len(matches), count)]
    return DetectionResult(float(np.nanmean(ap_by_class)), ap50, ap_by_class, matches)


def to_coco_results(detections: Sequence[Detections], annotations: dict) -> list[dict]:
    """Detections as COCO's list of results, in the order of ``annotations["images"]``.

    Raises:
        EvaluationError: not one list of detections for each image.
    """
    images = annotations["images"]
    if len(detections) != len(images):
        raise EvaluationError(
            f"Detections of {len(detections)} images, annotations of {len(images)}."
        )
    ids = [category["id"] for category in annotations["categories"]]
    rows = []
    for image, own in zip(images, detections, strict=True):
        boxes = to_coco_boxes(own.boxes).tolist()
        for box, score, label in zip(boxes, own.scores, own.labels, strict=True):
            rows.append({
                "image_id": image["id"], "category_id": ids[label], "bbox": box,
                "score": float(score),
            })  # fmt: skip
    return rows


def bootstrap(
    results: dict[str, DetectionResult], repeats: int = 300, seed: int = 0
) -> dict[str, np.ndarray]:
    """mAP of each detector over the same resampled images: name -> (repeats,).

    Subtract two of them for the spread of their difference: what is hard for both
    cancels out. All must have been evaluated on the same images.
    """
    counts = {len(result.matches[0]) for result in results.values()}
    if len(counts) != 1:
        raise EvaluationError(f"Evaluated on different images, {sorted(counts)} each.")
    (count,) = counts
    draws = np.random.default_rng(seed).integers(0, count, (repeats, count))
    return {
        name: np.array([result.mean_ap_of(draw) for draw in draws])
        for name, result in results.items()
    }


def _average_precision(matches: list[_Match], targets: int) -> float:
    """Mean over thresholds of the area under precision over recall, of one class."""
    scores = np.concatenate([match.scores for match in matches])
    order = np.argsort(-scores, kind="mergesort")
    true_positives = np.concatenate([match.true_positives for match in matches], 1)[
        :, order
    ]
    false_positives = np.concatenate([match.false_positives for match in matches], 1)[
        :, order
    ]
    right = np.cumsum(true_positives, 1, dtype=float)  # (thresholds, d)
    wrong = np.cumsum(false_positives, 1, dtype=float)
    precision = right / np.maximum(right + wrong, np.finfo(float).eps)
    # the best precision at this recall or a higher one
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    total = 0.0
    for own, recall in zip(precision, right / targets, strict=True):
        index = np.searchsorted(recall, _RECALLS, side="left")
        total += own[index[index < len(recall)]].sum() / len(_RECALLS)
    return total / len(true_positives)


def _match(found: dict) -> _Match:
    """One of COCOeval's ``evalImgs``."""
    matched, counted = found["dtMatches"] > 0, found["dtIgnore"] == 0
    scores, targets = np.array(found["dtScores"]), int(np.sum(found["gtIgnore"] == 0))
    return _Match(scores, matched & counted, ~matched & counted, targets)
