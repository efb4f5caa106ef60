"""The catalog: every model and data set of the course, with its source per profile."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..core import settings
from ..core.errors import AssetError

_FILE = Path(__file__).with_name("catalog.toml")


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
    notebooks: tuple[str, ...]
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
        """Source, licence, size and a plain word on what it is, for the reader."""
        lines = [
            self.title,
            f"  source   {self._source()}",
            f"  licence  {self.licence}",
            f"  cite     {self.citation}",
        ]
        if note := self.spec.get("note"):
            lines.append(f"  note     {note}")
        return "\n".join(lines)

    def _source(self) -> str:
        spec = self.spec
        megabytes = f"{spec.get('bytes', 0) / 1e6:.1f} MB"
        match spec.get("source"):
            case "wheel":
                return f"wheel {spec['requirement']} on the package index, {megabytes}"
            case "sdist":
                archive = f"source archive {spec['requirement']}"
                return f"{archive} on the package index, {megabytes}"
            case "hub":
                return f"Hub {spec['repo']}@{spec['revision'][:8]}, {megabytes}"
            case "url":
                return f"{spec['downloads'][0]['urls'][0]}, {megabytes}"
            case "torchvision":
                return f"torchvision {spec['weights']}, {megabytes}"
            case "generate":
                return "generated on this machine"
        return "a folder of yours (MICROBUDGET_DATA)"


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
    # Without such an entry torch, which takes seconds, isn't asked.
    if "device" not in asset.spec:
        return True
    return (asset.spec["device"] == "cuda") == ("cuda" in settings.device())


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
    return Asset(
        name,
        profile,
        entry["title"],
        entry["licence"],
        entry["citation"],
        tuple(entry["notebooks"]),
        entry.get("folder", name),
        entry.get(profile, {}),
    )


@cache
def _entries() -> dict:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
