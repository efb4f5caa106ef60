"""Plain-text progress bars: seen in a terminal or a live notebook, silent elsewhere.

MICROBUDGET_PROGRESS=0 silences them, as the batch runs of the notebooks do.
"""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(iterable: Iterable | None = None, description: str = "", **options) -> tqdm:
    """A tqdm bar; ``options`` are tqdm's (total, unit, initial …)."""
    return tqdm(
        iterable,
        desc=description,
        file=sys.stdout,
        disable=not _is_watched(),
        leave=False,
        dynamic_ncols=True,
        **options,
    )


def _is_watched() -> bool:
    if os.environ.get("MICROBUDGET_PROGRESS", "1").strip() == "0":
        return False
    in_notebook = "ipykernel" in sys.modules
    return in_notebook or sys.stdout.isatty()
