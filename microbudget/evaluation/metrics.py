"""How good a classifier is: scikit-learn's metrics behind checks that speak plainly."""

import numpy as np

from ..core.errors import EvaluationError


def classification_report(labels, predictions) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over classes (macro).

    Args:
        labels, predictions: class indices, tensors or arrays (examples,).

    Raises:
        EvaluationError: empty, of different lengths, or not class indices.
    """
    from sklearn import metrics as sk  # takes seconds

    labels, predictions = _checked(labels, predictions)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predictions, average="macro", zero_division=0
    )
    return {
        "accuracy": float(sk.accuracy_score(labels, predictions)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def accuracy(labels, predictions) -> float:
    """The fraction of examples that are right."""
    labels, predictions = _checked(labels, predictions)
    return float((labels == predictions).mean())


def confusion_matrix(labels, predictions, classes: int) -> np.ndarray:
    """(classes, classes) counts: row = true class, column = predicted class."""
    from sklearn import metrics as sk

    labels, predictions = _checked(labels, predictions)
    return sk.confusion_matrix(labels, predictions, labels=np.arange(classes))


def most_confused(matrix: np.ndarray, n: int = 5) -> list[tuple[int, int, int]]:
    """The ``n`` commonest mistakes: (true class, predicted class, how often)."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(mistakes, axis=None, kind="stable")[::-1][:n]
    rows, columns = np.unravel_index(order, mistakes.shape)
    return [
        (int(i), int(j), int(mistakes[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if mistakes[i, j]
    ]


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy measured on ``n`` examples (binomial): √(p(1-p)/n)."""
    if n < 1 or not 0 <= accuracy <= 1:
        raise EvaluationError(f"No standard error for accuracy {accuracy} on {n}.")
    return float(np.sqrt(accuracy * (1 - accuracy) / n))


def paired_difference(a, b) -> tuple[float, float]:
    """Mean of ``a - b`` over the same examples, and its standard error.

    Far sharper than comparing two accuracies with an error each: what is hard for both
    cancels out.

    Args:
        a, b: (examples,) right or wrong as 1 or 0, or the share of seeds that were.

    Raises:
        EvaluationError: fewer than two examples, or of different shapes.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise EvaluationError(
            f"Two lists of equal length are needed, got {a.shape}, {b.shape}."
        )
    difference = a - b
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(a)))


def _checked(labels, predictions) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise EvaluationError(
            f"labels {labels.shape} and predictions {predictions.shape} must be two "
            "lists of equal length (take logits.argmax(1) first)."
        )
    if len(labels) == 0:
        raise EvaluationError("There is nothing to evaluate.")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(values.dtype, np.integer):
            raise EvaluationError(f"{name} must be class indices, got {values.dtype}.")
    return labels, predictions
