"""The catalog: every model and data set of the course, with its source per profile."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..core import settings
from ..core.errors import AssetError

_FILE = Path(__file__).with_name("catalog.toml")
_SOURCES = {  # where files come from, in the words of an asset's card
    "wheel": "wheel {requirement} on the package index",
    "sdist": "source archive {requirement} on the package index",
    "hub": "Hub {repo}@{revision:.8}",
    "url": "{downloads[0][urls][0]}",
    "generate": "generated on this machine",
    None: "a folder of yours (MICROBUDGET_DATA)",
}


@dataclass(frozen=True)
class Asset:
    """One model or data set as one profile sees it.

    Attributes:
        folder: where it is looked for below MICROBUDGET_DATA.
        spec: the profile's table of ``catalog.toml`` (``source`` and what it needs);
            empty when this profile has no source for the asset.
    """

    name: str
    profile: str
    title: str
    licence: str
    citation: str
    notebooks: list[str]
    folder: str
    spec: dict

    @property
    def config(self) -> dict:
        """How the model wants its input and was built (empty for data sets)."""
        return self.spec.get("config", {})

    @property
    def is_generated(self) -> bool:
        return self.spec.get("source") == "generate"

    def card(self) -> str:
        """Source, size, licence and a plain word on what it is, for the reader."""
        source = self.spec.get("source")
        where = _SOURCES[source].format_map(self.spec)
        if source and not self.is_generated:
            where += f", {self.spec['bytes'] / 1e6:.1f} MB"
        rows = [("source", where), ("licence", self.licence), ("cite", self.citation)]
        rows.append(("note", self.spec.get("note")))
        return "\n".join(
            [self.title, *(f"  {name:8} {text}" for name, text in rows if text)]
        )


def names(profile: str | None = None, notebook: str | None = None) -> list[str]:
    """Names in the catalog; of those with a source in a profile, for a notebook."""
    return [
        name
        for name, entry in _entries().items()
        if (profile is None or profile in entry)
        and (notebook is None or notebook in entry["notebooks"])
    ]


def needed(profile: str | None = None) -> list[str]:
    """What the course's notebooks need in a profile (default: the current one)."""
    wanted = (get(name, profile) for name in names(profile or settings.load().profile))
    return [asset.name for asset in wanted if asset.notebooks and _suits_device(asset)]


def _suits_device(asset: Asset) -> bool:
    device = asset.spec.get("device")
    # Without one torch, which takes seconds to import, isn't asked.
    return device is None or (device == "cuda") == ("cuda" in settings.device())


def get(name: str, profile: str | None = None) -> Asset:
    """One entry of the catalog, as a profile (default: the current one) sees it.

    Raises:
        AssetError: no such name; the message lists the names there are.
    """
    entry = _entries().get(name)
    if entry is None:
        raise AssetError(
            f"There is no asset {name!r}. The catalog has: {', '.join(_entries())}."
        )
    profile = profile or settings.load().profile
    card = (entry[key] for key in ("title", "licence", "citation", "notebooks"))
    folder = entry.get("folder", name)
    return Asset(name, profile, *card, folder, entry.get(profile, {}))


@cache
def _entries() -> dict:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
