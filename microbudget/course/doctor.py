"""Can the course run here? What is wrong, and what to do about it."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
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


@dataclass
class Diagnosis:
    """All that was looked at; printed without the name of the user's home folder."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether the course can run here."""
        return all(finding.level != PROBLEM for finding in self.findings)

    def __str__(self) -> str:
        text = "\n".join(map(str, self.findings))
        return text.replace(str(Path.home()), "~")


def diagnose() -> Diagnosis:
    """Look at what the course needs, up to the first check that finds a PROBLEM."""
    found = Diagnosis()
    for check in (_packages, _torch, _settings, _machine, _assets, _engines):
        try:
            found.findings += check()
        except MicrobudgetError as error:  # a setting that has no meaning
            found.findings.append(Finding(PROBLEM, str(error), "Correct or unset it."))
        except Exception as error:  # a check must not keep the others from the reader
            what = f"{check.__name__[1:]}: {type(error).__name__}: {error}"
            remedy = "Report this with the output of `microbudget doctor`."
            found.findings.append(Finding(PROBLEM, what, remedy))
        if not found.healthy:
            break
    return found


def _packages() -> Iterator[Finding]:
    """Every direct dependency against the bounds in pyproject.toml."""
    from packaging.requirements import Requirement

    yield Finding(OK, f"Python {platform.python_version()}")
    for wanted in map(Requirement, requires("microbudget") or []):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield Finding(PROBLEM, f"{wanted.name} is missing", _REINSTALL)
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            what = f"{wanted.name} {found}, wanted {wanted.specifier}"
            yield Finding(PROBLEM, what, _REINSTALL)


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
    yield Finding(OK, f"torchvision {torchvision.__version__}")
    if not torchvision_has_compiled_operators():
        what = "torchvision is built for CUDA, torch for the CPU: the course works, "
        yield Finding(NOTE, what + "torchvision.ops.nms and the like don't")


def _settings() -> Iterator[Finding]:
    from ..core import precision

    settings.load()
    device = settings.device()
    dtype = "bfloat16" if precision.fast_bf16(device) else "float32"
    asked = os.environ.get("MICROBUDGET_BF16", "").strip()
    if device == "cpu" and not asked and precision.recorded() is None:
        dtype += " until `microbudget fetch` has measured which is faster"
    yield Finding(OK, f"device {device}, computes in {dtype}")


def _machine() -> Iterator[Finding]:
    import psutil

    here = settings.load()
    load = psutil.getloadavg()[0]
    busy = load > here.threads + 0.5
    what = f"{here.threads} threads, on a machine with a load of {load:.1f}"
    yield Finding(NOTE if busy else OK, what, "Close other programs." * busy)
    free = psutil.virtual_memory().available
    short = free < _MEMORY
    what = f"{free / 1e9:.1f} GB of memory free, 4 are enough"
    yield Finding(NOTE if short else OK, what, "Close other programs." * short)
    folder = here.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if folder.is_dir() and os.access(folder, os.W_OK) and free > _DISK:
        yield Finding(OK, f"{free / 1e9:.1f} GB of disk free where models are kept")
    else:
        what = f"{folder} has {free / 1e9:.1f} GB free, or is no folder to write to"
        yield Finding(PROBLEM, what, "Free 2 GB, or set MICROBUDGET_HOME elsewhere.")


def _assets() -> Iterator[Finding]:
    here = settings.load()
    for name in assets.needed():
        path = assets.locate(name)
        in_cache = path is None or path.parent == here.cache
        if in_cache and (changed := assets.verify(name)):
            what = f"{name}: {len(changed)} files changed or missing ({changed[0]} …)"
            remedy = f"Run `microbudget fetch --verify {name}`."
            yield Finding(PROBLEM, what, remedy)
        elif path is None:
            stuck = here.offline and not assets.get(name).is_generated
            yield Finding(
                PROBLEM if stuck else NOTE,
                f"{name} is not here yet" + ", and MICROBUDGET_OFFLINE is set" * stuck,
                f"microbudget fetch {name}"
                + f"; or copy data/cache from another machine to {here.cache}" * stuck,
            )
        else:
            mine = " in MICROBUDGET_DATA" * (here.data in path.parents)
            yield Finding(OK, f"{name} is here{mine}")


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
