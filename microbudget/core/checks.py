"""Values as people have them, brought to the form that the package computes with.

Each of these stands where a user's value enters, once; inside, plain tensors are
passed on.
"""

from collections.abc import Sequence

import numpy as np
import torch

from .errors import MicrobudgetError


def as_labels(
    labels,
    classes: int | None,
    error: type[MicrobudgetError],
    count: int | None = None,
) -> torch.Tensor:
    """Labels 0 … classes − 1 as int64 (items,), from a list, an array or a tensor.

    Args:
        classes: None: how many there are isn't known, and any whole number will do.
        error: what is raised. count: of the items that they must belong to.

    Raises:
        MicrobudgetError: no whole numbers, not one for each item, beyond the classes.
    """
    values = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if values.ndim != 1 or not (
        np.issubdtype(values.dtype, np.integer) or values.dtype == bool
    ):
        some = values.flatten()[:3].tolist()
        raise error(
            f"Labels must be whole numbers from 0, one for each item; got "
            f"{values.dtype} {values.shape}, such as {some}. Text becomes numbers by "
            "sorted(set(labels)).index(label)."
        )
    if count is not None and len(values) != count:
        raise error(f"{len(values)} labels for {count} items: give one for each.")
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if classes is not None and (low < 0 or high >= classes):
        hint = " Subtract 1 from each." if (low, high) == (1, classes) else ""
        raise error(
            f"Labels run from {low} to {high}, but there are {classes} classes: they "
            f"must lie between 0 and {classes - 1}.{hint}"
        )
    return torch.as_tensor(values.astype(np.int64))


def as_texts(texts: Sequence[str], error: type[MicrobudgetError], what: str) -> list:
    """A list of texts (or pairs of them); one bare string, None or NaN isn't taken.

    Args:
        what: they are, for the message, such as "transcripts".
    """
    if isinstance(texts, str):
        raise error(f"One string was given as {what}: put it into a list.")
    texts = list(texts)
    for i, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if not all(isinstance(part, str) for part in parts):
            raise error(
                f"Number {i} of the {what} is {text!r}, not text: leave it out."
            )
    return texts


def as_mask(mask: torch.Tensor, shape: Sequence[int], error, name: str) -> torch.Tensor:
    """A boolean mask; zeros and ones of another type are taken, too."""
    mask = torch.as_tensor(mask)
    if tuple(mask.shape) != tuple(shape):
        raise error(f"{name}: a mask {tuple(mask.shape)} on a weight {tuple(shape)}.")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise error(f"{name}: a mask holds True and False, or zeros and ones only.")
    return mask.bool()
