"""Text files that a user may have written: read, or an error that names the line."""

import json
from pathlib import Path

from ..core.errors import DataError


def read_text(path: Path) -> str:
    """A UTF-8 file, without a byte order mark.

    Raises:
        DataError: missing, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The number, from 1, and the text of every line that isn't blank.

    Only line feeds end a line (or CRLF): texts may hold U+2028, U+0085 or form feeds.
    """
    lines = enumerate(read_text(path).split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


def read_jsonl(path: Path, *keys: str) -> list[tuple[str, ...]]:
    """The texts under ``keys`` of every line, without the white space around them.

    Raises:
        DataError: missing, not UTF-8, or a line without one of the texts.
    """
    rows = []
    for number, line in read_lines(path) or [(1, "")]:
        try:
            row = json.loads(line)
            rows.append(tuple(row[key].strip() for key in keys))
            if not all(rows[-1]):
                raise ValueError("an empty text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = ", ".join(f'"{key}": …' for key in keys)
            raise DataError(
                f"{path}, line {number}: expected {{{expected}}} "
                f"({type(error).__name__}: {error})."
            ) from error
    return rows
