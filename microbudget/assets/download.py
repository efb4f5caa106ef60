"""One file over the network: resumed, verified, moved into place when whole."""

import hashlib
import os
import time
from pathlib import Path

from ..core.errors import AssetError
from ..core.files import full_disk_is_clear
from ..core.progress import bar

_ATTEMPTS = 3
REMEDY_OFFLINE = (
    "Check the connection and run it again: it goes on where it stopped. Without a "
    "network, copy the folder data/cache from a machine that has it to {cache}, or "
    "point MICROBUDGET_DATA at a folder with ready files."
)


def sha256_of(path: Path) -> str:
    """sha256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(urls: list[str], target: Path, sha256: str, size: int, client) -> int:
    """Download one file to ``target``; a part that is already there is gone on with.

    Args:
        urls: mirrors, tried in turn.
        target: where the whole file goes; ``target.part`` holds it meanwhile.
        sha256: expected digest (or a prefix of it).
        size: expected bytes, for the progress bar only.
        client: an ``httpx2.Client`` (unearth's also reads ``file://``).

    Returns:
        Bytes received over the network in this call.

    Raises:
        AssetError: no mirror answered, the digest is wrong, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if _size(part) and sha256_of(part).startswith(sha256):
        os.replace(part, target)  # whole already, but killed before it was renamed
        return 0
    received, problems = 0, []
    for url in urls:
        for _ in range(_ATTEMPTS):
            before = _size(part)
            problem, again = _attempt(url, part, sha256, size, client)
            received += max(0, _size(part) - before)
            if not problem:
                os.replace(part, target)
                return received
            problems.append(f"{url.rsplit('/', 1)[-1]}: {problem}")
            if not again:
                break
            time.sleep(0.5)
    raise AssetError(
        f"Could not download {target.name}:\n  "
        + "\n  ".join(dict.fromkeys(problems))
        + "\n"
        + REMEDY_OFFLINE.format(cache=target.parent.parent)
    )


def _attempt(url: str, part: Path, sha256: str, size: int, client) -> tuple[str, bool]:
    """What went wrong, if anything, and whether another attempt may succeed."""
    import httpx2

    resumed = _size(part) > 0
    try:
        _stream(url, part, size, client)
    except (httpx2.HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 500)
        return f"{type(error).__name__}: {error}", status >= 500 or status in (416, 429)
    digest = sha256_of(part)
    if digest.startswith(sha256):
        return "", False
    part.unlink()  # never go on from bytes known to be wrong
    problem = f"sha256 is {digest[:16]}…, expected {sha256[:16]}…"
    return problem, resumed  # a resumed file may mix two versions


def _stream(url: str, part: Path, size: int, client) -> None:
    """Append what is missing of ``url`` to ``part``."""
    have = _size(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code == 416:  # not shorter than the file: the next is whole
            part.unlink()
        response.raise_for_status()
        goes_on = response.status_code == 206
        shown = bar(
            None, part.name.removesuffix(".part"), total=size or None,
            initial=have if goes_on else 0, unit="B", unit_scale=True,
        )  # fmt: skip
        with (
            shown,
            full_disk_is_clear(part, AssetError),
            open(part, "ab" if goes_on else "wb") as out,
        ):
            for block in response.iter_bytes():
                out.write(block)
                shown.update(len(block))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
