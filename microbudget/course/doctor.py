"""Can the course run here? What is wrong, and what to do about it."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from ..core import settings
from ..core.errors import MicrobudgetError

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_REINSTALL = "Run `make clean notebooks`; outside a checkout, reinstall it."
_PYTHON = (3, 11)
_MEMORY = 4e9
_DISK = 2e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A PROBLEM keeps the course from running."""

    level: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        arrow = f"\n          -> {self.remedy}" if self.remedy else ""
        return f"{self.level:>8}  {self.what}{arrow}"


def examine() -> list[Finding]:
    """Look at everything; never raises for what it finds."""
    try:
        here = settings.load()
    except MicrobudgetError as error:
        return [Finding(PROBLEM, str(error), "Mend or unset that variable.")]
    findings = [_python(), *_versions()]
    if not healthy(findings):
        return findings  # what follows imports those packages
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except Exception as error:  # a broken install fails in many ways
        what = f"torch or torchvision does not import: {error}"
        return [*findings, Finding(PROBLEM, what, _REINSTALL)]
    findings += [_torch(), _torchvision(), _device(), _threads(here), _memory()]
    findings += [_disk(here), *_assets(here), _network(here), *_engines()]
    return findings


def healthy(findings: list[Finding]) -> bool:
    return not any(finding.level == PROBLEM for finding in findings)


def _python() -> Finding:
    found = platform.python_version()
    if tuple(sys.version_info) < _PYTHON:
        return Finding(PROBLEM, f"Python {found}", "Install Python 3.11 or newer.")
    return Finding(OK, f"Python {found}")


def _versions() -> list[Finding]:
    """Every direct dependency against the bounds in pyproject.toml."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("microbudget") or []]
    except PackageNotFoundError:
        return [
            Finding(PROBLEM, "microbudget is not installed", "Run `make notebooks`.")
        ]
    good, findings = 0, []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = None
        if found and requirement.specifier.contains(found, prereleases=True):
            good += 1
        else:
            findings.append(
                Finding(
                    PROBLEM,
                    f"{requirement.name} {found or 'is missing'}, wanted "
                    f"{requirement.specifier}",
                    _REINSTALL,
                )
            )
    return [Finding(OK, f"{good} packages within their bounds"), *findings]


def _torch() -> Finding:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Finding(OK, f"torch {torch.__version__}, {build} build")


def _torchvision() -> Finding:
    import torchvision

    from ..core.compat import torchvision_has_compiled_operators

    name = f"torchvision {torchvision.__version__}"
    if torchvision_has_compiled_operators():
        return Finding(OK, name)
    return Finding(
        NOTE,
        f"{name} without its compiled operators (it was built for CUDA, torch is the "
        "CPU build): the course works, box operators such as nms don't",
    )


def _device() -> Finding:
    import torch

    from ..core.precision import fast_bf16, recorded

    try:
        device = settings.device()
        fast = fast_bf16(device)
    except MicrobudgetError as error:
        return Finding(PROBLEM, str(error), "Mend or unset that variable.")
    bf16 = "bfloat16" if fast else "float32"
    if os.environ.get("MICROBUDGET_BF16", "").strip():
        bf16 += ", says MICROBUDGET_BF16"
    elif device == "cpu":
        measured = recorded() is not None
        bf16 += ", as measured at set-up" if measured else " until `microbudget fetch`"
    if device == "cpu":
        return Finding(OK, f"device cpu ({bf16}), no GPU in use; none is needed")
    name = torch.cuda.get_device_name() if "cuda" in device else device
    return Finding(OK, f"device {device}: {name} ({bf16})")


def _threads(here: settings.Settings) -> Finding:
    what = f"{here.threads} threads"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > here.threads + 0.5:
        return Finding(
            NOTE, f"{what}, but the machine is busy (load {load:.1f})",
            "Close other programs: timings will be wrong and training slow.",
        )  # fmt: skip
    return Finding(OK, what)


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    what = f"{free / 1e9:.1f} GB of memory free"
    if free < _MEMORY:
        return Finding(NOTE, what, "The course may need 4 GB: close other programs.")
    return Finding(OK, what)


def _disk(here: settings.Settings) -> Finding:
    folder = here.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    what = f"{free / 1e9:.1f} GB of disk free where models are kept"
    if not os.access(folder, os.W_OK):
        return Finding(
            PROBLEM, f"{folder} can't be written to", "Set MICROBUDGET_HOME elsewhere."
        )
    if free < _DISK:
        return Finding(PROBLEM, what, "Free 2 GB, or set MICROBUDGET_HOME elsewhere.")
    return Finding(OK, what)


def _assets(here: settings.Settings) -> list[Finding]:
    from .. import assets

    findings = []
    if here.data:
        there = [
            name
            for name in assets.names()
            if (here.data / assets.get(name).folder).is_dir()
        ]
        findings.append(
            Finding(OK, f"MICROBUDGET_DATA has {', '.join(there) or 'none of ours'}")
        )
    for name in assets.needed():
        if (path := assets.locate(name)) is None:
            findings.append(
                Finding(NOTE, f"{name} is not here yet", f"microbudget fetch {name}")
            )
        elif path.parent == here.cache and (bad := assets.verify(name)):
            findings.append(
                Finding(
                    PROBLEM,
                    f"{name}: {len(bad)} files changed or missing ({bad[0]} …)",
                    f"Delete {path} and run `microbudget fetch {name}`.",
                )
            )
        else:
            findings.append(Finding(OK, f"{name} is here"))
    return findings


def _network(here: settings.Settings) -> Finding:
    from .. import assets

    missing = [
        name
        for name in assets.needed()
        if assets.locate(name) is None and not assets.get(name).is_generated
    ]
    if here.offline and missing:
        return Finding(
            PROBLEM,
            f"offline, but {', '.join(missing)} must still be fetched",
            "Unset MICROBUDGET_OFFLINE for `microbudget fetch`, or copy data/cache "
            f"from a machine that has it to {here.cache}.",
        )
    state = "MICROBUDGET_OFFLINE is set" if here.offline else "fetching is allowed"
    return Finding(OK, f"{state}; after set-up nothing uses the network")


def _engines() -> list[Finding]:
    """What runs GGUF files; notebook 04 needs llama.cpp, Ollama is welcome."""
    from ..llm import engines

    findings = []
    for name, state in engines.available().items():
        if state.startswith("No Ollama server"):
            findings.append(Finding(OK, f"{name}: not running, and not needed"))
        elif state.split()[-1][0].isdigit():  # a version
            findings.append(Finding(OK, f"{name}: {state}"))
        else:
            findings.append(Finding(NOTE, f"{name} can't be used", state))
    return findings


def shorten_home(text: str) -> str:
    """Leave the user's name out of what they paste in public."""
    return text.replace(str(Path.home()), "~")
