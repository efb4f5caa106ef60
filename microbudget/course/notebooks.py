"""The notebooks as files: list, run with nbmake, save lightly, strip for teaching."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from ..core import settings
from ..core.errors import MicrobudgetError
from ..core.files import atomic_path
from .run import FAILED

HASH = "microbudget_sources_sha256"
_TIMEOUT = 3600  # seconds a cell may take; the budgets are far below it


def find(names: Sequence[str] = ()) -> list[Path]:
    """The course's notebooks in order; ``names`` picks some by their beginning.

    Raises:
        MicrobudgetError: not in a checkout, or a name that fits none.
    """
    every = sorted((checkout() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for name in names:
        if not any(path.stem.startswith(name) for path in every):
            there = ", ".join(path.stem for path in every)
            raise MicrobudgetError(f"No notebook {name!r}. There are: {there}.")
    return [path for path in every if path.stem.startswith(tuple(names) or "")]


def checkout() -> Path:
    """The project's folder, which holds the notebooks and the README."""
    root = settings.project_root()
    if root is None:
        raise MicrobudgetError(
            "The notebooks are in the project's repository: clone it and install the "
            "package from there (`make notebooks` does)."
        )
    return root


def question(path: Path) -> str:
    """A notebook's title: the heading that its first cell begins with."""
    first = nbformat.read(path, as_version=4).cells[0]
    return first.source.splitlines()[0].removeprefix("# ")


def lines_of_code(stem: str) -> int:
    """Of a notebook, without comments, blank lines, exercises and solutions."""
    (path,) = find([stem])
    count = 0
    for cell in nbformat.read(path, as_version=4).cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and not tags & {"exercise", "solution"}:
            lines = (line.strip() for line in cell.source.splitlines())
            count += sum(1 for line in lines if line and not line.startswith("#"))
    return count


def sources_sha256(notebook: nbformat.NotebookNode) -> str:
    """Digest of the code cells' sources: outputs belong to exactly these."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def run(names: Sequence[str] = (), *, save: bool = False) -> int:
    """Execute notebooks from top to bottom with nbmake, without a network.

    Copies are run, under ``runs/notebooks``; the files in ``notebooks/`` are only
    touched when ``save`` is set and all of them passed. Claims that were only reported
    to fail are printed at the end; a notebook with one isn't saved, nor is one that was
    edited meanwhile.

    Returns:
        pytest's exit status, 0 when every notebook ran; 1 when one wasn't saved.
    """
    sources = find(names)
    folder = settings.load().home / "runs" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    before = {path: path.read_bytes() for path in sources}
    copies = [Path(shutil.copy(path, folder)) for path in sources]
    print(f"Running {len(copies)} notebooks: minutes. A line appears as each one ends.")
    # what a user has set for other projects must not reach this run
    foreign = ("PYTEST_ADDOPTS", "MPLBACKEND", "JUPYTER_PATH")
    environment = {k: v for k, v in os.environ.items() if k not in foreign} | {
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not a user's
        "MICROBUDGET_BLOCK_NETWORK": "1",
        "MICROBUDGET_OFFLINE": "1",
        "MICROBUDGET_PROGRESS": "0",
    }
    command = [
        sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "--verbose",
        f"--nbmake-timeout={_TIMEOUT}", "--durations=0", "--durations-min=1",
        "-p", "no:cacheprovider",
        # bare names, from inside the folder: a path may hold brackets, :: or $
        "--rootdir=.", "-c", os.devnull, *(copy.name for copy in copies),
    ]  # fmt: skip
    status = subprocess.run(command, env=environment, cwd=folder).returncode
    keep = save and status == 0
    for source, copy in zip(sources, copies, strict=True):
        failed = _failed_claims(copy)
        for claim in failed:
            print(f"{source.stem}: {FAILED} {claim}")
        edited = source.read_bytes() != before[source]
        if keep and (failed or edited):
            why = "it was edited meanwhile." if edited else "is the machine idle?"
            print(f"{source.stem}: not saved, {why} Run it again.")
            status = 1
        elif keep:
            _save(copy, source)
    return status


def _failed_claims(path: Path) -> list[str]:
    """What an executed notebook says doesn't hold here."""
    return [
        line.removeprefix(FAILED).strip()
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
        for line in output.get("text", "").splitlines()
        if line.startswith(FAILED)
    ]


def handout(target: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copies for live teaching: no outputs, no cells tagged ``solution``.

    Raises:
        MicrobudgetError: one of them is there already, perhaps edited, or the folder is
            the notebooks' own.
    """
    from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor

    sources = checkout() / "notebooks"
    if target.resolve().is_relative_to(sources.resolve()):
        raise MicrobudgetError(
            f"{target} is the folder of the notebooks themselves. Choose another one "
            "with --to."
        )
    written = []
    for path in find(names):
        copy = target / path.name
        if copy.exists():
            raise MicrobudgetError(
                f"{copy} is there already. Move it away or delete it, or choose "
                "another folder with --to."
            )
        notebook = nbformat.read(path, as_version=4)
        TagRemovePreprocessor(remove_cell_tags={"solution"}).preprocess(notebook, {})
        ClearOutputPreprocessor().preprocess(notebook, {})
        notebook.metadata.pop(HASH, None)
        _write(notebook, copy)
        written.append(copy)
    shutil.copytree(sources / "diagrams", target / "diagrams", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.py", "__pycache__"))  # fmt: skip
    return written


def _save(executed: Path, target: Path) -> None:
    """Keep an executed notebook: outputs and counts, no timestamps, no widgets."""
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = nbformat.read(executed, as_version=4)
    # what was printed piece by piece becomes one output: some viewers break the line
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata[HASH] = sources_sha256(notebook)
    _write(notebook, target)


def _write(notebook: nbformat.NotebookNode, path: Path) -> None:
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)
