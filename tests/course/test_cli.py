"""The command line and the doctor."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from microbudget import assets
from microbudget.core import precision, settings
from microbudget.course import cli, doctor
from microbudget.pruning import flower_baselines
from microbudget.training import baselines


def test_doctor_finds_this_machine_fit(capsys, monkeypatch):
    monkeypatch.delenv("MICROBUDGET_OFFLINE", raising=False)
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    for text in ("The course can run here.", "threads", "disk", "mobilenet-v2 is"):
        assert text in report


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "microbudget", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0.1.0"


@pytest.mark.parametrize("name", ["PROFILE", "DEVICE", "BF16", "THREADS"])
def test_doctor_names_a_wrong_setting(monkeypatch, capsys, name):
    monkeypatch.setenv(f"MICROBUDGET_{name}", "nonsense")
    assert cli.main(["doctor"]) == 1
    assert f"PROBLEM  MICROBUDGET_{name}" in capsys.readouterr().out


def test_doctor_exits_non_zero_when_offline_and_empty(home, monkeypatch, capsys):
    monkeypatch.setenv("MICROBUDGET_OFFLINE", "1")
    assert cli.main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert "mobilenet-v2 is not here yet, and MICROBUDGET_OFFLINE is set" in report
    assert "->" in report


def test_doctor_names_a_package_of_another_version(monkeypatch, capsys):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda n: "0.1" if n == "torch" else real(n))
    assert cli.main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert "torch 0.1, wanted" in report
    assert "run `make notebooks`" in report


def test_doctor_says_so_when_torch_does_not_import():
    """In a process of its own, where importing torch fails as a broken install does."""
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("libtorch_cpu.so: cannot open shared object file")
sys.meta_path.insert(0, Broken())
from microbudget.course import cli
sys.exit(cli.main(["doctor"]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert "torch or torchvision does not import: libtorch_cpu.so" in run.stdout
    assert "Traceback" not in run.stderr


def test_doctor_notices_a_full_disk(monkeypatch, capsys):
    usage = SimpleNamespace(free=10**8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert cli.main(["doctor"]) == 1
    assert "MICROBUDGET_HOME" in capsys.readouterr().out


def test_doctor_notices_a_changed_model(tmp_path, monkeypatch, capsys):
    real = assets.fetch("mobilenet-v2")
    monkeypatch.setenv("MICROBUDGET_HOME", str(tmp_path))
    folder = settings.load().cache / real.name
    shutil.copytree(real, folder)
    assert cli.main(["doctor"]) == 0
    (folder / "model.safetensors").write_bytes(b"not the weights")
    assert cli.main(["doctor"]) == 1
    assert "changed or missing" in capsys.readouterr().out


def test_a_diagnosis_does_not_name_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.Path, "home", lambda: tmp_path)
    found = doctor.Diagnosis([doctor.Finding(doctor.OK, f"{tmp_path}/x")])
    assert str(found).split() == ["ok", "~/x"]


def test_fetching_all_prepares_what_chapters_start_from(home, monkeypatch, capsys):
    """It decides the precision and trains the shared networks, once."""

    def made(name):
        path = home / "runs" / "finetuned" / f"{name}-0123.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        trained.append(name)

    trained: list[str] = []
    monkeypatch.delenv("MICROBUDGET_BF16", raising=False)
    monkeypatch.setattr(precision, "has_bf16_instructions", lambda: True)
    monkeypatch.setattr(precision, "measure_gain", lambda: 3.0)
    monkeypatch.setattr(assets, "needed", list)
    monkeypatch.setattr(baselines, "sentiment", lambda: made("sentiment"))
    monkeypatch.setattr(baselines, "flowers", lambda: made("flowers"))
    monkeypatch.setattr(
        flower_baselines, "fine_tuned", lambda net: made("pruning-longer")
    )
    assert cli.main(["fetch"]) == 0
    assert trained == ["sentiment", "flowers", "pruning-longer"]
    printed = capsys.readouterr().out
    assert "computes in bfloat16 (measured once)" in printed
    assert "trained once on this machine" in printed
    monkeypatch.setattr(precision, "measure_gain", lambda: pytest.fail("measured"))
    assert cli.main(["fetch"]) == 0
    assert len(trained) == 3
    assert cli.main(["doctor"]) == 0
    assert "device cpu, computes in bfloat16\n" in capsys.readouterr().out
    longer = home / "runs" / "finetuned" / "pruning-longer-0123.safetensors"
    longer.unlink()  # interrupted
    assert cli.main(["fetch"]) == 0
    assert trained[-1] == "pruning-longer"


def test_fetch_says_it_is_here(capsys):
    assert cli.main(["fetch", "mobilenet-v2"]) == 0
    assert "here already" in capsys.readouterr().out


def test_errors_are_one_message_without_a_traceback(capsys):
    assert cli.main(["fetch", "nothing"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("AssetError: There is no asset 'nothing'")
    assert "Traceback" not in error


def test_ctrl_c_is_not_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "diagnose", interrupted)
    assert cli.main(["doctor"]) == 130
    assert "go on" in capsys.readouterr().err


def test_unknown_notebooks_are_listed(capsys):
    assert cli.main(["run", "77"]) == 1
    assert "No notebook '77'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "handout", "table", "run 00"])
def test_a_home_that_is_a_file_is_said_plainly(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MICROBUDGET_HOME", str(tmp_path / "file"))
    code = cli.main(command.split())
    shown = capsys.readouterr()
    assert code == (0 if command == "table" else 1)
    if code:
        assert "MICROBUDGET_HOME" in shown.out + shown.err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_lacks_signs(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "microbudget", "table"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"LoRA" in done.stdout


def test_told_to_end_it_takes_its_children_along():
    code = (
        "import subprocess, sys; from microbudget.course import cli, notebooks\n"
        "sleep = [sys.executable, '-c', 'import time; print(1, flush=True); "
        "time.sleep(60)']\n"
        "notebooks.run = lambda *_, **__: subprocess.run(sleep).returncode\n"
        "cli.main(['run'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    parent.stdout.readline()  # the child is there
    (child,) = psutil.Process(parent.pid).children()
    parent.terminate()
    assert parent.wait(10) == 143
    child.wait(10)
    assert not child.is_running()
