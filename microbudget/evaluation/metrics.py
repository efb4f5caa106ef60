"""How good a classifier is: scikit-learn's metrics, and how sure they are."""

import numpy as np

from ..core.errors import EvaluationError


def accuracy(labels, predictions) -> float:
    """The fraction of examples that are right.

    Args:
        labels, predictions: class indices, tensors or arrays (examples,).

    Raises:
        EvaluationError: empty, of different lengths, or not class indices.
    """
    labels, predictions = _checked(labels, predictions)
    return float((labels == predictions).mean())


def confusion_matrix(labels, predictions, classes: int) -> np.ndarray:
    """(classes, classes) counts: row = true class, column = predicted class."""
    from sklearn import metrics

    labels, predictions = _checked(labels, predictions)
    largest = max(labels.max(), predictions.max())
    if largest >= classes or min(labels.min(), predictions.min()) < 0:
        raise EvaluationError(
            f"Class {largest} is among {classes} classes, numbered from 0: give their "
            "right number."
        )
    return metrics.confusion_matrix(labels, predictions, labels=np.arange(classes))


def most_confused(matrix: np.ndarray, n: int = 5) -> list[tuple[int, int, int]]:
    """The ``n`` commonest mistakes: (true class, predicted class, how often)."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(mistakes, axis=None, kind="stable")[::-1][:n]
    pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
    return [(int(i), int(j), int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def paired_difference(a, b) -> tuple[float, float]:
    """Mean of ``a - b`` over the same examples, and its standard error.

    Far sharper than comparing two accuracies with an error each: what is hard for both
    cancels out.

    Args:
        a, b: (examples,) right or wrong as 1 or 0, or the fraction of seeds that were.

    Raises:
        EvaluationError: fewer than two examples, or of different shapes.
    """
    from scipy import stats

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise EvaluationError(
            f"Two lists of equal length are needed, got {a.shape}, {b.shape}."
        )
    return float((a - b).mean()), float(stats.sem(a - b))


def _checked(labels, predictions) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1 or not len(labels):
        raise EvaluationError(
            f"labels {labels.shape} and predictions {predictions.shape} must be two "
            "lists of equal length, not empty (take logits.argmax(1) first)."
        )
    if predictions.dtype.kind == "f":
        raise EvaluationError("The predictions must be class indices, not scores.")
    return labels, predictions
