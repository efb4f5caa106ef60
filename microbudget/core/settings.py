"""Where things are and how to run: profile, device, threads, seed, folders, network.

Everything comes from environment variables, so that a notebook holds no setting:

=============================  ==================================================
MICROBUDGET_PROFILE            ``mini`` (default) or ``full``
MICROBUDGET_DATA               folder of ready models and data sets; wins over all
MICROBUDGET_HOME               where fetched and generated files go
MICROBUDGET_LEDGER             where ``run.finish()`` writes
MICROBUDGET_DEVICE             ``cpu``, ``cuda``, ``cuda:1``, ``mps``
MICROBUDGET_BF16               ``0`` or ``1``: compute in bfloat16; default: where it
                               is faster than float32, which is measured
MICROBUDGET_THREADS            CPU threads; default: the cores this process may use
MICROBUDGET_SEED               default 0
MICROBUDGET_PRICE_PER_HOUR     what an hour of this machine costs, default 0.10
MICROBUDGET_OFFLINE            ``1``: never fetch; a missing asset is an error
MICROBUDGET_BLOCK_NETWORK      ``1``: any connection off this machine raises
=============================  ==================================================

This module imports nothing heavy: ``import microbudget`` must stay fast.
"""

import logging
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import SettingsError

PROFILES = ("mini", "full")
CURRENCY = "EUR"  # of MICROBUDGET_PRICE_PER_HOUR; the default is a small rented VM
# metrics that are better when lower; every other is better when higher
LOWER_IS_BETTER = frozenset({
    "latency_ms", "latency32_ms", "load_s", "megabytes", "loss", "wer", "perplexity",
    "kl",
})  # fmt: skip
ON, OFF = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
_LOOPBACK = {"localhost", "::1", "0.0.0.0", "::", ""}


@dataclass(frozen=True)
class Settings:
    """The settings of this process; read from the environment by :func:`load`."""

    profile: str
    data: Path | None
    home: Path
    ledger: Path
    threads: int
    seed: int
    price_per_hour: float
    offline: bool

    @property
    def cache(self) -> Path:
        """Folder of fetched models and data sets."""
        return self.home / "cache"


def project_root() -> Path | None:
    """The checkout that this package is run from, or None when installed alone."""
    root = Path(__file__).resolve().parents[2]
    is_checkout = (root / "notebooks").is_dir() and (root / "pyproject.toml").is_file()
    return root if is_checkout else None


def load() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a value that has no meaning; the message lists those that do.
    """
    profile = os.environ.get("MICROBUDGET_PROFILE", "").strip() or "mini"
    if profile not in PROFILES:
        raise SettingsError(
            f"MICROBUDGET_PROFILE={profile!r} is not a profile. Use one of "
            f"{', '.join(PROFILES)}, or unset it to get 'mini'."
        )
    return Settings(
        profile=profile,
        data=_data_folder(),
        home=_home(),
        ledger=_ledger(),
        threads=_number("MICROBUDGET_THREADS", _usable_cores(), int, 1, 1024),
        seed=_number("MICROBUDGET_SEED", 0, int, 0, 2**32 - 1),
        price_per_hour=_number("MICROBUDGET_PRICE_PER_HOUR", 0.10, float, 0, 1e6),
        offline=is_on("MICROBUDGET_OFFLINE"),
    )


def is_on(variable: str) -> bool:
    """Whether an environment variable is set to 1, true, yes or on.

    Raises:
        SettingsError: it is set to something that is neither yes nor no.
    """
    value = os.environ.get(variable, "").strip().lower()
    if value and value not in ON | OFF:
        raise SettingsError(f"{variable}={value!r} must be 1 or 0 (yes or no).")
    return value in ON


def device() -> str:
    """``cuda`` when torch sees one, else ``cpu``; MICROBUDGET_DEVICE overrides.

    Raises:
        SettingsError: the device asked for isn't there.
    """
    import torch

    asked = os.environ.get("MICROBUDGET_DEVICE", "").strip()
    if not asked:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = asked.partition(":")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    count = torch.cuda.device_count() if kind == "cuda" else 1
    is_one = not index or (index.isdecimal() and int(index) < count)
    if not available.get(kind, False) or not is_one or asked.endswith(":"):
        there = [name for name, is_there in available.items() if is_there]
        raise SettingsError(
            f"MICROBUDGET_DEVICE={asked!r} is not available here. "
            f"Use one of {', '.join(there)}, or unset it."
        )
    return asked


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's random generators."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def go_quiet_and_offline() -> None:
    """Set the switches that other libraries read when they are imported.

    Called by ``import microbudget``, before any of them is. A variable that the
    user has set is left alone.
    """
    switches = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "KINETO_LOG_LEVEL": "99",  # torch's profiler would print when it starts
    }
    for name, value in switches.items():
        os.environ.setdefault(name, value)
    # peft imports bitsandbytes, which then tells that an optional kernel isn't there
    # and a warning for every int8 matmul; transformers imports torchao, which complains
    # about kernels for cards that aren't here
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions",
                 "torchao", "torch.utils._pytree"):  # fmt: skip
        logging.getLogger(name).setLevel(logging.ERROR)
    if is_on("MICROBUDGET_BLOCK_NETWORK"):
        block_network()


@cache  # an audit hook can't be removed; install it once
def block_network() -> None:
    """From now on, connecting to anything but this machine raises ``OSError``."""

    def refuse(event: str, arguments: tuple) -> None:
        if event in ("socket.connect", "socket.sendto"):
            address = arguments[1]
        elif event == "socket.getaddrinfo":
            address = arguments[:2]
        else:
            return
        if not _is_local(address):
            raise OSError(
                f"blocked {event} to {address!r}: after set-up the course uses no "
                "network (MICROBUDGET_BLOCK_NETWORK=1)"
            )

    sys.addaudithook(refuse)


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    host = address[0]
    own_name = os.uname().nodename if hasattr(os, "uname") else None
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    return (
        host is None or host in {*_LOOPBACK, own_name} or str(host).startswith("127.")
    )


def _home() -> Path:
    root = project_root()
    if value := os.environ.get("MICROBUDGET_HOME", "").strip():
        return (root or Path.cwd()) / _expanded("MICROBUDGET_HOME", value)
    return root / "data" if root else Path.home() / ".cache" / "microbudget"


def _ledger() -> Path:
    value = os.environ.get("MICROBUDGET_LEDGER", "").strip()
    if not value:
        return _home() / "runs" / "ledger"
    # relative to the project, not to the notebook's working folder
    return (project_root() or Path.cwd()) / _expanded("MICROBUDGET_LEDGER", value)


def _expanded(variable: str, value: str) -> Path:
    """A path with ~ as the home folder."""
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"{variable}={value!r} names a user that isn't known here. Use a full path."
        ) from error


def _data_folder() -> Path | None:
    value = os.environ.get("MICROBUDGET_DATA", "").strip()
    if not value:
        return None
    folder = _expanded("MICROBUDGET_DATA", value)
    root = project_root()
    if not folder.is_absolute() and not folder.is_dir() and root:
        folder = root / folder  # a notebook's working folder is notebooks/
    if not folder.is_dir():
        raise SettingsError(
            f"MICROBUDGET_DATA={value!r} is not a folder. Point it at a folder that "
            "holds ready data sets (such as flowers-102/), or unset it."
        )
    return folder.absolute()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number(variable: str, default, kind: type, minimum, maximum):
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not minimum <= value <= maximum:
        what = "a whole number" if kind is int else "a number"
        raise SettingsError(
            f"{variable}={text!r} must be {what} from {minimum} to {maximum:,.0f}."
        )
    return value
