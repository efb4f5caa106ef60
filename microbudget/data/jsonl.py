"""Files of JSON lines: one object of texts a line."""

import json
from pathlib import Path

from ..core.errors import DataError


def read(path: str | Path, *keys: str) -> list[tuple[str, ...]]:
    """The texts under ``keys`` of every line, without the white space around them.

    Raises:
        DataError: missing, not UTF-8, or a line without one of the texts.
    """
    path, rows = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8").strip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(tuple(row[key].strip() for key in keys))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = ", ".join(f'"{key}": …' for key in keys)
            raise DataError(
                f"{path}, line {number}: expected {{{expected}}} "
                f"({type(error).__name__}: {error})."
            ) from error
        if not all(rows[-1]):
            empty = keys[rows[-1].index("")]
            raise DataError(f"{path}, line {number}: an empty {empty}.")
    return rows
