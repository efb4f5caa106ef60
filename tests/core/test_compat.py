"""After ``import microbudget``, other packages import as anyone would write it."""

import subprocess
import sys

import pytest

LINES = [
    "import torchvision; torchvision.models.mobilenet_v2()",
    "import torchvision.transforms.v2, torchvision.ops",
    "from torchvision import datasets",
    "import transformers; transformers.BertModel",
    "from transformers import pipeline",
    "import peft; peft.LoraConfig",
]


@pytest.mark.parametrize("line", LINES)
def test_plain_imports_work_in_a_fresh_process(line):
    run = subprocess.run(
        [sys.executable, "-c", f"import microbudget\n{line}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


def test_importing_microbudget_imports_nothing_heavy():
    code = """
import sys, microbudget
heavy = ("torch", "numpy", "torchvision", "transformers")
print([name for name in heavy if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_missing_packages_stay_missing():
    """The finder doesn't hide that a package isn't installed."""
    code = """
import importlib.machinery, microbudget
importlib.machinery.PathFinder.find_spec = lambda *a: None
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error.name)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "torchvision", run.stdout + run.stderr
