"""One file over the network: resumed, verified, moved into place when whole."""

import hashlib
import os
import shutil
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


def git_blob_of(path: Path) -> str:
    """A file's id in git, 40 hexadecimal digits: sha1 of a header and its content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
    if _is(target, sha256):
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    received, problems = 0, []
    if _is(part, sha256):  # whole already, but killed before it was renamed
        os.replace(part, target)
        return 0
    for url in urls:
        for attempt in range(_ATTEMPTS):
            before = part.stat().st_size if part.exists() else 0
            try:
                _stream(url, part, size, client)
            except _network_errors() as error:
                problems.append(f"{_host_free(url)}: {type(error).__name__}: {error}")
                if not _worth_a_retry(error):
                    break
                time.sleep(0.2 * 2**attempt)
                continue
            finally:
                after = part.stat().st_size if part.exists() else 0
                received += after - before if after >= before else after
            digest = sha256_of(part)
            if digest.startswith(sha256):
                os.replace(part, target)
                return received
            part.unlink()  # never go on from bytes known to be wrong
            problems.append(
                f"{_host_free(url)}: sha256 is {digest[:16]}…, expected {sha256[:16]}…"
            )
            if not before:  # a resumed file may mix two versions: once more, whole
                break
    raise AssetError(
        f"Could not download {target.name}:\n  "
        + "\n  ".join(dict.fromkeys(problems))
        + "\n"
        + REMEDY_OFFLINE.format(cache=target.parent.parent)
    )


def _stream(url: str, part: Path, size: int, client) -> None:
    """Append what is missing of ``url`` to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code == 416 and have:  # no shorter than the file: start anew
            part.unlink()
            return _stream(url, part, size, client)
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


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path).startswith(sha256)


def require_space(folder: Path, needed: int) -> None:
    """Stop before a download that can't fit.

    Raises:
        AssetError: less than ``needed`` bytes are free where ``folder`` is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AssetError(
            f"{folder} has {free / 1e6:,.0f} MB free, but {needed / 1e6:,.0f} MB are "
            "needed. Free some space, or set MICROBUDGET_HOME to a folder on another "
            "disk."
        )


def _network_errors() -> tuple:
    import httpx2

    return (httpx2.HTTPError, ConnectionError, TimeoutError, BlockingIOError)


def _worth_a_retry(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= 500 or status == 429


def _host_free(url: str) -> str:
    """The last part of an address: enough to recognise it, no index is named."""
    return url.rsplit("/", 1)[-1].split("#")[0]
