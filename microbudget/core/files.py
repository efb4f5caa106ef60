"""Writing files so that a reader never sees half of one."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import MicrobudgetError


@contextlib.contextmanager
def full_disk_is_clear(path: Path, error: type[MicrobudgetError]) -> Iterator[None]:
    """Turn 'no space left' into an ``error`` that says where and what to do."""
    try:
        yield
    except Exception as cause:  # safetensors has an error of its own for it
        if not _is_full(cause):
            raise
        raise error(
            f"The disk is full while writing {path}. Free some space (or set "
            "MICROBUDGET_HOME to a folder on another disk) and run it again."
        ) from cause


def _is_full(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in codes
    return any(f"(os error {code})" in str(error) for code in codes)


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike, error: type[MicrobudgetError] = MicrobudgetError
) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds.

    Raises:
        error: the disk is full; whatever was at ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_is_clear(path, error):
            yield temporary
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    folder: Path, error: type[MicrobudgetError] = MicrobudgetError
) -> Iterator[Path]:
    """A temporary folder that replaces ``folder`` when the block succeeds.

    Raises:
        error: the disk is full; whatever was at ``folder`` is untouched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with full_disk_is_clear(folder, error):
            yield draft
            os.chmod(draft, 0o755)  # mkdtemp makes it private
        if folder.exists():
            old = draft.with_name(draft.name + ".old")
            os.replace(folder, old)
            os.replace(draft, folder)
            shutil.rmtree(old)
        else:
            os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
