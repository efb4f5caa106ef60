"""Mean average precision as COCO defines it, by pycocotools, with its spread.

A detection is right when its class is and its box overlaps the true one by an IoU of at
least t, each true box found once. Average precision (AP) is the area under precision
over recall, at 101 recalls; mAP is its mean over classes and t = 0.50, 0.55 ... 0.95
(Lin et al. 2014, arXiv:1405.0312, and the evaluator that goes with it).
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import DataError, EvaluationError
from ..core.files import atomic_path
from . import boxes as bx

MOST = 100  # of a class in a picture, for pycocotools; of a picture, for ``decode``
THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Found:
    """What a detector found in a picture.

    Attributes:
        boxes: float32 (n, 4), ``x0, y0, x1, y1`` in pixels of the original picture.
        scores: float32 (n,), 0...1.
        labels: int64 (n,), places in the list of classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def above(self, score: float) -> "Found":
        """Those with at least this score."""
        keep = self.scores >= score
        return Found(self.boxes[keep], self.scores[keep], self.labels[keep])


@dataclass(frozen=True)
class Precision:
    """What pycocotools matched, a picture at a time: enough to add up any selection.

    Attributes:
        mean, at_50: mAP, and AP at an IoU of 0.5 (NaN: not among the thresholds), over
            all pictures.
        by_class: AP of each class (NaN: the pictures hold none).
        matches: [class][picture]: scores (d,), hits and ignored, both bool
            (thresholds, d), and how many boxes there are to find. Classes and pictures
            are in the order of the annotations' lists.
    """

    mean: float
    at_50: float
    by_class: np.ndarray
    matches: tuple
    pictures: int


def annotations(pages: Sequence, classes: Sequence[str]) -> dict:
    """The pages' boxes as a COCO dictionary: images, annotations, categories.

    Category ids are places in ``classes`` **plus one**, as in COCO, where 0 is nothing.
    """
    images, notes = [], []
    for i, page in enumerate(pages):
        height, width = page.picture.shape[:2]
        images.append({"id": i + 1, "width": width, "height": height})
        own = bx.checked(page.boxes, (height, width))
        for box, size, label in zip(
            bx.to_coco(own).tolist(), bx.area(own).tolist(), page.labels.tolist(),
            strict=True,
        ):  # fmt: skip
            notes.append({
                "id": len(notes) + 1, "image_id": i + 1, "category_id": label + 1,
                "bbox": box, "area": size, "iscrowd": 0,
            })  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": notes, "categories": categories}


def save(notes: dict, path: str | os.PathLike) -> Path:
    """Write a COCO dictionary as JSON."""
    with atomic_path(path, DataError) as temporary:
        temporary.write_text(json.dumps(notes), encoding="utf-8")
    return Path(path)


def results(found: Sequence[Found], notes: dict) -> list[dict]:
    """Detections as COCO's list of results, in the order of ``notes["images"]``.

    Raises:
        EvaluationError: not one list of detections for each picture, or a score that is
            not a number.
    """
    if len(found) != len(notes["images"]):
        raise EvaluationError(
            f"Detections of {len(found)} pictures, annotations of "
            f"{len(notes['images'])}."
        )
    known = [category["id"] for category in notes["categories"]]
    rows = []
    for image, own in zip(notes["images"], found, strict=True):
        if np.isnan(own.scores).any():
            raise EvaluationError(
                f"Picture {image['id']} has a detection whose score is not a number."
            )
        for box, score, label in zip(
            bx.to_coco(own.boxes).tolist(), own.scores.tolist(), own.labels.tolist(),
            strict=True,
        ):  # fmt: skip
            rows.append(_row(image["id"], known[label], box, score))
    return rows


def _row(image: int, category: int, box: list, score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def average_precision(
    found: Sequence[Found], notes: dict, thresholds: Sequence[float] = tuple(THRESHOLDS)
) -> Precision:
    """Judge detections by a COCO dictionary.

    Args:
        thresholds: of the IoU; the course uses others only to show what they hide.

    Raises:
        EvaluationError: other pictures than annotated, nothing annotated but crowds, or
            a score that is not a number.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # a copy: pycocotools writes into it
    truths = [{"iscrowd": 0, **note} for note in notes["annotations"]]
    if all(note["iscrowd"] for note in truths):
        raise EvaluationError(
            "The pictures have no annotations, or of crowds only: nothing to find."
        )
    rows = results(found, notes)
    if not rows:  # pycocotools can't read an empty list
        first = notes["images"][0]["id"], notes["categories"][0]["id"]
        rows = [_row(*first, [0, 0, 1, 1], 0.0)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables of its own
        truth = COCO()
        truth.dataset = notes | {"annotations": truths}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.params.iouThrs = np.asarray(thresholds, float)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [MOST]
        judge.evaluate()
        judge.accumulate()
    # pycocotools sorts by id
    pictures, classes = _ranks(notes["images"]), _ranks(notes["categories"])
    # (thresholds, recalls, classes)
    table = judge.eval["precision"][:, :, classes, 0, 0]
    known = table.reshape(-1, table.shape[-1]).min(0) > -1
    by_class = np.where(known, table.mean((0, 1)), np.nan)
    half = np.isclose(thresholds, 0.5)
    matches = _matches(judge)
    return Precision(
        float(np.nanmean(by_class)),
        float(table[half][..., known].mean()) if half.any() else float("nan"),
        by_class,
        tuple([matches[k][i] for i in pictures] for k in classes),
        len(notes["images"]),
    )


def mean_precision(judged: Precision, chosen: np.ndarray) -> float:
    """mAP over a selection of the pictures, which may repeat.

    The same sum that pycocotools makes, over what it has matched before.
    """
    values = []
    for own in judged.matches:
        parts = [own[i] for i in chosen]
        truths = sum(part[3] for part in parts)
        if not truths:
            continue
        scores = np.concatenate([part[0] for part in parts])
        hits, ignored = (np.concatenate([p[j] for p in parts], 1) for j in (1, 2))
        values.append(_area(scores, hits, ignored, truths))
    return float(np.mean(values)) if values else float("nan")


def spread(
    judged: dict[str, Precision], repeats: int = 300, seed: int = 0
) -> dict[str, np.ndarray]:
    """mAP of each over the same resampled pictures (bootstrap): name -> (repeats,).

    Subtract two of them for the spread of their difference: what is hard for both
    cancels out.

    Raises:
        EvaluationError: they were judged on different pictures, whose boxes to find
            differ in number.
    """
    truths = {
        tuple(tuple(part[3] for part in pictures) for pictures in own.matches)
        for own in judged.values()
    }
    counts = {own.pictures for own in judged.values()}
    if len(truths) != 1 or len(counts) != 1:
        raise EvaluationError(
            f"Judged on different pictures ({sorted(counts)} of them): the boxes to "
            "find aren't the same."
        )
    (count,) = counts
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, count, (repeats, count))
    return {
        name: np.array([mean_precision(own, draw) for draw in draws])
        for name, own in judged.items()
    }


def _area(scores, hits, ignored, truths: int) -> float:
    """Mean over thresholds of the area under precision over recall."""
    order = np.argsort(-scores, kind="mergesort")
    hits, ignored = hits[:, order], ignored[:, order]  # (thresholds, d)
    right = np.cumsum(hits & ~ignored, 1, dtype=float)
    wrong = np.cumsum(~hits & ~ignored, 1, dtype=float)
    precision = right / np.maximum(right + wrong, np.finfo(float).eps)
    # the best precision at this recall or a higher one
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    total = 0.0
    for p, r in zip(precision, right / truths, strict=True):
        place = np.searchsorted(r, _RECALLS, side="left")
        total += p[place[place < len(r)]].sum() / len(_RECALLS)
    return total / len(hits)


def _ranks(rows: list[dict]) -> np.ndarray:
    """The place that each would have if they were sorted by id."""
    return np.argsort(np.argsort([row["id"] for row in rows]))


def _matches(judge) -> tuple:
    """[class][picture] -> (scores, hits, ignored, truths), of an evaluated COCOeval."""
    pictures, classes = len(judge.params.imgIds), len(judge.params.catIds)
    none = np.zeros((len(judge.params.iouThrs), 0), bool)

    def of(e):
        if e is None:
            return np.zeros(0), none, none, 0
        truths = int(np.sum(np.asarray(e["gtIgnore"]) == 0))
        hits, ignored = np.asarray(e["dtMatches"]) > 0, np.asarray(e["dtIgnore"]) > 0
        return np.array(e["dtScores"]), hits, ignored, truths

    return tuple(
        [of(e) for e in judge.evalImgs[k * pictures : (k + 1) * pictures]]
        for k in range(classes)
    )
