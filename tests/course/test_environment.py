"""pyproject.toml, requirements.lock, environment.yml, README and Makefile agree."""

import os
import re
import subprocess
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from microbudget import __version__, assets
from microbudget.core import settings
from microbudget.course import cli

ROOT = settings.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# gptq pins another numpy than the lock has: it is for an environment of its own
TOGETHER = [texts for name, texts in EXTRAS.items() if name != "gptq"]
DIRECT = [Requirement(t) for t in [*PROJECT["dependencies"], *chain(*TOGETHER)]]
LOCKED = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_every_dependency_has_bounds_and_a_locked_version_within(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert ">=" in operators
    assert "<" in operators
    locked = [r for r in LOCKED if r.name == requirement.name.lower()]
    assert locked, "run `make lock`"
    for lock in locked:
        (pin,) = lock.specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(Version(pin.version), prereleases=True)


def test_environment_yml_is_thin():
    text = (ROOT / "environment.yml").read_text()
    entries = re.findall(r"^\s*- (?!pip:)(.+)$", text, re.MULTILINE)
    python = f"python{PROJECT['requires-python']}"
    assert entries == [python, "pip", "-r requirements.lock", "-e .[dev]"]


def test_the_readme_says_what_pyproject_says():
    assert f"Python {PROJECT['requires-python'].replace('>=', '≥ ')}" in README
    assert "make notebooks" in README
    assert "make test" in README
    assert PROJECT["version"] == __version__


def test_the_readme_names_only_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for target in re.findall(r"`make ([a-z]+)", README):
        assert target in targets, target
    commands = set(re.findall(r"`(?:\.venv/bin/)?microbudget ([a-z]+)", README))
    assert commands
    for command in commands:
        with pytest.raises(SystemExit) as asked:
            cli.main([command, "--help"])
        assert asked.value.code == 0, command


def test_the_readmes_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_no_index_host_and_no_path_of_a_machine_is_committed():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    ).stdout.split(b"\0")
    if not tracked[0]:
        pytest.skip("not a git checkout")
    forbidden = re.compile(
        rb"py(pi\.org|thonho" + rb"sted)|--(extra-)?index-url[ =]h"
        rb"|/(ro" + rb"ot|wo" + rb"rk|ho" + rb"me/[a-z]+|Use" + rb"rs/[a-z]+)/"
    )
    for name in filter(None, tracked):
        path = ROOT / name.decode()
        if path.is_file():
            assert not forbidden.search(path.read_bytes()), path


def test_the_cuda_libraries_are_left_to_torch():
    assert not [r.name for r in LOCKED if r.name.startswith(("nvidia-", "triton"))]
    assert {"torch", "torchvision"} <= {r.name for r in LOCKED}


def make(*arguments: str) -> str:
    """What make prints, also when the tests themselves were started by make."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_clean_leaves_alone_what_make_did_not_make(tmp_path):
    """A virtual environment of the user's own, and the tracked ledger, survive."""
    own = tmp_path / "own-venv"
    own.mkdir()
    script = make("-n", "clean", f"VENV={own}").replace("data/", f"{tmp_path}/data/")
    for name in ("cache", "runs", "ledger"):
        (tmp_path / "data" / name).mkdir(parents=True)
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    assert own.is_dir()
    assert (tmp_path / "data" / "ledger").is_dir()
    assert not (tmp_path / "data" / "cache").exists()
    (own / ".made-by-microbudget").touch()
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    assert not own.exists()


def test_what_the_notebooks_need_is_in_the_catalog():
    flowers = "mb.training.baselines.flowers"
    sentiment = "mb.training.baselines.sentiment"
    uses = {
        "mobilenet-v2": ("mb.models.mobilenet.", flowers),
        "synthetic-flowers": ("mb.data.flowers.", flowers),
        "whisper-tiny.en": ("mb.models.whisper.",),
        "spoken-sentences": ("mb.data.speech.",),
        "minilm-l6": ("mb.models.bert.", sentiment),
        "rated-snippets": ("mb.data.text.", sentiment),
        "smollm2-135m-instruct": ("mb.models.smollm.",),
        "wikitext2": ("mb.data.prose.",),
        "lambada": ("mb.data.prose.last_words",),
        "page-layout": ("mb.detection.load_detector",),
        "detr-resnet-50": ("mb.detection.load_detector",),
    }
    stems = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        stems.add(path.stem)
        text = path.read_text()
        for name, calls in uses.items():
            listed = path.stem in assets.get(name, "mini").notebooks
            assert any(call in text for call in calls) == listed, (path.stem, name)
    for name in assets.names():
        assert set(assets.get(name, "mini").notebooks) <= stems
