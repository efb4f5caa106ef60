"""Settings, the fast import, and the network block that every other test relies on."""

import os
import pkgutil
import socket
import subprocess
import sys

import pytest

import microbudget
from microbudget.core import settings
from microbudget.core.errors import MicrobudgetError, SettingsError


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MICROBUDGET_PROFILE", "mimi", "mini, full"),
        ("MICROBUDGET_THREADS", "many", "whole number from 1 to 1,024"),
        ("MICROBUDGET_THREADS", "0", "whole number from 1"),
        ("MICROBUDGET_THREADS", "99999999", "from 1 to 1,024"),
        ("MICROBUDGET_SEED", "-1", "from 0 to 4,294,967,295"),
        ("MICROBUDGET_SEED", "4294967296", "from 0 to 4,294,967,295"),
        ("MICROBUDGET_PRICE_PER_HOUR", "nan", "a number from 0"),
        ("MICROBUDGET_PRICE_PER_HOUR", "inf", "a number from 0"),
        ("MICROBUDGET_OFFLINE", "maybe", "must be 1 or 0"),
        ("MICROBUDGET_HOME", "~nosuchuser/x", "names a user that isn't known"),
        ("MICROBUDGET_DATA", "no/such/folder", "is not a folder"),
    ],
)
def test_a_senseless_setting_says_what_is_sensible(
    monkeypatch, variable, value, message
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message) as caught:
        settings.load()
    assert variable in str(caught.value)


def test_defaults(monkeypatch):
    for name in list(os.environ):
        if name.startswith("MICROBUDGET_"):
            monkeypatch.delenv(name)
    here = settings.load()
    assert here.profile == "mini"
    assert here.home == settings.project_root() / "data"
    assert 1 <= here.threads <= (os.cpu_count() or 1)
    assert not here.offline


def test_a_relative_data_folder_is_found_from_a_notebook(monkeypatch):
    root = settings.project_root()
    monkeypatch.chdir(root / "tests")
    monkeypatch.setenv("MICROBUDGET_DATA", "tests/golden")
    assert settings.load().data == root / "tests" / "golden"


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "tpu")
    with pytest.raises(SettingsError, match="cpu"):
        settings.device()


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, microbudget; "
        "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'accelerate'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_offline_switches_are_set_before_any_library_reads_them():
    code = (
        "import microbudget, huggingface_hub.constants as c, os;"
        "print(c.HF_HUB_OFFLINE, os.environ['TRANSFORMERS_OFFLINE'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert run.stdout.split() == ["True", "1"]


def test_every_name_of_every_table_of_contents_resolves():
    """Names must be public; a folder of its own would hide a name that it equals."""
    names = [*microbudget.FLOORS, *microbudget.CHAPTERS, "course"]
    assert len(names) <= 20
    for folder in (getattr(microbudget, name) for name in names):
        for name in dir(folder):
            assert getattr(folder, name) is not None
        modules = {module.name for module in pkgutil.iter_modules(folder.__path__)}
        for name in set(dir(folder)) & modules:
            assert getattr(folder, name).__name__ == f"{folder.__name__}.{name}"
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = folder.nothing
    assert callable(microbudget.start)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "8.8.8.8", "10.0.0.1"])
def test_the_network_is_blocked_in_tests(host):
    with pytest.raises(OSError, match="uses no network"):
        socket.create_connection((host, 80), timeout=1)


def test_this_machine_is_not_blocked():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            assert connection.getpeername()[1] == port


def test_errors_render_without_a_traceback_in_a_notebook():
    lines = MicrobudgetError("what happened; what to do")._render_traceback_()
    assert lines == ["MicrobudgetError: what happened; what to do"]


@pytest.mark.parametrize("asked", ["cpu:x", "cpu:", "gpu", "cpu:1:2"])
def test_a_device_that_is_none(monkeypatch, asked):
    monkeypatch.setenv("MICROBUDGET_DEVICE", asked)
    with pytest.raises(SettingsError, match=r"MICROBUDGET_DEVICE=.* not available"):
        settings.device()
