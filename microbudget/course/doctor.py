"""Can the course run here? What is wrong, and what to do about it."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .. import assets
from ..core import settings
from ..core.errors import MicrobudgetError

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_REINSTALL = "Delete .venv and run `make notebooks`; outside a checkout, reinstall it."
_MEMORY, _DISK = 4e9, 2e9  # bytes that the course needs


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A PROBLEM keeps the course from running."""

    level: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        arrow = f"\n          -> {self.remedy}" if self.remedy else ""
        return f"{self.level:>8}  {self.what}{arrow}"


@dataclass(frozen=True)
class Diagnosis:
    """All that was looked at; printed without the name of the user's home folder."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether the course can run here."""
        return all(finding.level != PROBLEM for finding in self.findings)

    def __str__(self) -> str:
        text = "\n".join(map(str, self.findings))
        return text.replace(str(Path.home()), "~")


def diagnose() -> Diagnosis:
    """Look at what the course needs, up to the first check that finds a PROBLEM."""
    findings: tuple[Finding, ...] = ()
    for check in (_packages, _torch, _settings, _machine, _assets, _engines):
        try:
            findings += tuple(check())
        except MicrobudgetError as error:  # a setting that has no meaning
            findings += (Finding(PROBLEM, str(error), "Correct or unset it."),)
        if not Diagnosis(findings).healthy:
            break
    return Diagnosis(findings)


def _packages() -> Iterator[Finding]:
    """Every direct dependency against the bounds in pyproject.toml."""
    from packaging.requirements import Requirement

    yield Finding(OK, f"Python {platform.python_version()}")
    good = 0
    for wanted in map(Requirement, requires("microbudget") or []):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = "is missing"
        if found[0].isdigit() and wanted.specifier.contains(found, prereleases=True):
            good += 1
            continue
        what = f"{wanted.name} {found}, wanted {wanted.specifier}"
        yield Finding(PROBLEM, what, _REINSTALL)
    yield Finding(OK, f"{good} packages within their bounds")


def _torch() -> Iterator[Finding]:
    try:
        import torch
        import torchvision
    except Exception as error:  # a broken install fails in many ways
        what = f"torch or torchvision does not import: {error}"
        yield Finding(PROBLEM, what, _REINSTALL)
        return
    from ..core.compat import torchvision_has_compiled_operators

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding(OK, f"torch {torch.__version__}, {build} build")
    name = f"torchvision {torchvision.__version__}"
    if torchvision_has_compiled_operators():
        yield Finding(OK, name)
    else:
        yield Finding(
            NOTE,
            f"{name} without its compiled operators (it was built for CUDA, torch is "
            "the CPU build): the course works, box operators such as nms don't",
        )


def _settings() -> Iterator[Finding]:
    from ..core import precision

    settings.load()
    device = settings.device()
    dtype = "bfloat16" if precision.fast_bf16(device) else "float32"
    if os.environ.get("MICROBUDGET_BF16", "").strip():
        dtype += ", says MICROBUDGET_BF16"
    elif device == "cpu":
        measured = precision.recorded() is not None
        dtype += ", as measured at set-up" if measured else " until `microbudget fetch`"
    yield Finding(OK, f"device {device}, computes in {dtype}")


def _machine() -> Iterator[Finding]:
    import psutil

    here = settings.load()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > here.threads + 0.5:
        what = f"{here.threads} threads, but the machine is busy (load {load:.1f})"
        yield Finding(
            NOTE, what, "Close other programs, or set OMP_WAIT_POLICY=passive."
        )
    else:
        yield Finding(OK, f"{here.threads} threads")
    free = psutil.virtual_memory().available
    level, remedy = (OK, "") if free > _MEMORY else (NOTE, "Close other programs.")
    yield Finding(level, f"{free / 1e9:.1f} GB of memory free, 4 are enough", remedy)
    folder = here.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if os.access(folder, os.W_OK) and free > _DISK:
        yield Finding(OK, f"{free / 1e9:.1f} GB of disk free where models are kept")
    else:
        what = f"{folder} has {free / 1e9:.1f} GB free or can't be written to"
        yield Finding(PROBLEM, what, "Free 2 GB, or set MICROBUDGET_HOME elsewhere.")


def _assets() -> Iterator[Finding]:
    here = settings.load()
    for name in assets.needed():
        path = assets.locate(name)
        if path is None:
            stuck = here.offline and not assets.get(name).is_generated
            yield Finding(
                PROBLEM if stuck else NOTE,
                f"{name} is not here yet" + ", and MICROBUDGET_OFFLINE is set" * stuck,
                f"microbudget fetch {name}"
                + f"; or copy data/cache from another machine to {here.cache}" * stuck,
            )
        elif path.parent == here.cache and (changed := assets.verify(name)):
            what = f"{name}: {len(changed)} files changed or missing ({changed[0]} …)"
            remedy = f"Delete {path} and run `microbudget fetch {name}`."
            yield Finding(PROBLEM, what, remedy)
        else:
            mine = " in MICROBUDGET_DATA" * (here.data in path.parents)
            yield Finding(OK, f"{name} is here{mine}")
    yield Finding(OK, "after set-up nothing uses the network")


def _engines() -> Iterator[Finding]:
    """What runs GGUF files; notebook 04 needs llama.cpp, Ollama is optional."""
    from ..llm import engines

    for name, state in engines.available().items():
        if state.startswith("No Ollama server"):
            yield Finding(OK, f"{name}: not running, and not needed")
        elif state.split()[-1][0].isdigit():  # a version
            yield Finding(OK, f"{name}: {state}")
        else:
            yield Finding(NOTE, f"{name} can't be used", state)
