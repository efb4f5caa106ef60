"""Fetch once, find ever after: the cache of models and data sets.

An asset is a folder ``cache/NAME-PROFILE`` that is either whole or absent: it is
made under a temporary name and renamed when its files are verified. A lock keeps two
processes from making it twice; killing one at any moment leaves at most temporary
files, which the next attempt resumes or clears.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from ..core import settings
from ..core.errors import AssetError
from ..core.files import full_disk_is_clear
from . import catalog, convert
from .download import sha256_of
from .sources import DOWNLOADS, SOURCES

MANIFEST, CONFIG = "asset.json", "config.json"


def locate(name: str, profile: str | None = None) -> Path | None:
    """The folder of an asset that is here already, or None; touches no network.

    ``MICROBUDGET_DATA/NAME`` (the catalog may say another folder) wins; then the cache.
    """
    data, asset = settings.load().data, catalog.get(name, profile)
    if data and (data / asset.folder).is_dir():
        return data / asset.folder
    return _folder(asset) if _is_whole(asset) else None


def find_real(name: str) -> Path | None:
    """Real data: a folder of the user's, or fetched in profile ``full``; else None."""
    if settings.load().profile == "full":
        return fetch(name)
    return locate(name)


def fetch(name: str, profile: str | None = None) -> Path:
    """The folder of an asset, fetched and converted first if it isn't here.

    Args:
        name: a name in the catalog.
        profile: ``mini`` or ``full``; default: the current one.

    Raises:
        AssetError: unknown name, no source in this profile, no network, wrong
            checksum, full disk. Nothing half-made is left behind under the asset's
            name.
    """
    import filelock

    asset = catalog.get(name, profile)
    if found := locate(name, asset.profile):
        return found
    if not asset.spec:
        raise AssetError(
            f"{name} has no source in profile {asset.profile!r}. Put it in "
            f"MICROBUDGET_DATA/{asset.folder}, or use MICROBUDGET_PROFILE=full."
        )
    cache = settings.load().cache
    if settings.load().offline and not asset.is_generated:
        raise AssetError(
            f"{name} {_state(asset)} and MICROBUDGET_OFFLINE is set. Run "
            f"`microbudget fetch {name} --profile {asset.profile}` where there is a "
            f"network, or copy the folder data/cache from a machine that has it to "
            f"{cache}."
        )
    try:
        (cache / DOWNLOADS).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f".{_folder(asset).name}.lock"):
            if not _is_whole(asset):  # else another process made it meanwhile
                with full_disk_is_clear(_folder(asset), AssetError):
                    _build(asset)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise AssetError(
            f"Can't write to {cache} ({error.strerror}). Set MICROBUDGET_HOME to a "
            "folder you may write to."
        ) from error
    return _folder(asset)


def load(name: str) -> dict:
    """A model's tensors by name, fetched first if they aren't here.

    Raises:
        AssetError: the asset can't be had, or its file is missing or damaged.
    """
    from safetensors.torch import load_file

    from .folders import clear_load_errors, require_files

    folder = fetch(name)
    require_files(folder, "model's", ["model.safetensors"])
    with clear_load_errors(folder):
        return load_file(folder / "model.safetensors")


def config(name: str) -> dict:
    """How the model of ``load(name)`` wants its input and was built.

    It travels in the model's folder, so that a copy under ``MICROBUDGET_DATA`` is read
    as what it is in any profile; before it is fetched, the catalog's is used.
    """
    folder = locate(name)
    if folder and (folder / CONFIG).is_file():
        return json.loads((folder / CONFIG).read_text())
    return dict(catalog.get(name).config)


def verify(name: str, profile: str | None = None) -> list[str]:
    """Files of a cached asset that are missing or no longer what was fetched."""
    asset = catalog.get(name, profile)
    return [
        file
        for file, digest in _manifest(asset).get("files", {}).items()
        if not (path := _folder(asset) / file).is_file() or sha256_of(path) != digest
    ]


def discard(name: str, profile: str | None = None) -> None:
    """Forget a cached asset: the next ``fetch`` makes it again."""
    (_folder(catalog.get(name, profile)) / MANIFEST).unlink(missing_ok=True)


def bytes_received(name: str, profile: str | None = None) -> int:
    """Bytes that fetching the asset took over the network (0: in MICROBUDGET_DATA)."""
    asset = catalog.get(name, profile)
    return _manifest(asset)["bytes_received"] if _is_whole(asset) else 0


def _build(asset: catalog.Asset) -> None:
    folder = _folder(asset)
    cache = folder.parent
    partial = cache / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    raw, ready = partial / "raw", partial / "ready"
    raw.mkdir(parents=True)
    ready.mkdir()
    try:
        received = SOURCES[asset.spec["source"]](asset, raw, cache / DOWNLOADS)
        if converter := asset.spec.get("converter"):
            getattr(convert, converter)(raw, ready)
        else:
            ready = raw
        if asset.config:  # travels with the weights when the folder is copied
            (ready / CONFIG).write_text(json.dumps(asset.config))
        files = {
            path.relative_to(ready).as_posix(): sha256_of(path)
            for path in sorted(ready.rglob("*"))
            if path.is_file()
        }
        for name, expected in asset.spec.get("files", {}).items():
            if files.get(name) != expected:
                raise AssetError(
                    f"{asset.name}: converting gave {name} with sha256 "
                    f"{files.get(name)}, expected {expected}. A library that the "
                    "converter uses has changed; please report it with the output of "
                    "`microbudget doctor`."
                )
        sizes = {name: (ready / name).stat().st_size for name in files}
        manifest = {"asset": asset.name, "profile": asset.profile, "files": files,
                    "sizes": sizes, "spec": _digest(asset),
                    "bytes_received": received}  # fmt: skip
        (ready / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if folder.exists():  # not whole, or we would not be here
            print(f"{folder.name} was damaged or outdated: it is made again")
            shutil.rmtree(folder)
        os.replace(ready, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(asset: catalog.Asset) -> bool:
    """Whether all files of the manifest are there, made as the catalog now says.

    Presence and sizes only, so that it is quick; ``verify`` compares digests.
    """
    manifest = _manifest(asset)
    if manifest.get("spec") != _digest(asset):
        return False
    sizes = manifest.get("sizes", {})
    return all(
        (path := _folder(asset) / file).is_file()
        and path.stat().st_size == sizes.get(file, path.stat().st_size or -1)
        for file in manifest["files"]
    )


def _state(asset: catalog.Asset) -> str:
    is_there = _folder(asset).is_dir()
    return "is damaged (a file is missing, cut or empty)" if is_there else "isn't here"


def _manifest(asset: catalog.Asset) -> dict:
    try:
        found = json.loads((_folder(asset) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or damaged: then the asset is made again
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("files"), dict)
    return found if whole else {}


def _digest(asset: catalog.Asset) -> str:
    """Of what decides an asset's content; its card's wording doesn't."""
    recipe = {key: value for key, value in asset.spec.items() if key != "note"}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _folder(asset: catalog.Asset) -> Path:
    return settings.load().cache / f"{asset.name}-{asset.profile}"
