"""The notebooks: executed, light, true to their sources, and they really run."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

import microbudget
from microbudget.core import settings
from microbudget.core.errors import MicrobudgetError
from microbudget.course import notebooks

PATHS = notebooks.find()
SOLUTIONS, EXERCISES = "solution", "exercise"
NEW_FORM = ("00", "01", "02", "03")
DIAGRAMS = settings.project_root() / "notebooks" / "diagrams"
GLOSSARY = "00_start_here.ipynb#Glossary"
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def ran_in_order(path):
    """Whether every cell ran once, from top to bottom."""
    counts = [cell.execution_count for cell in code_cells(path)]
    return counts == list(range(1, len(counts) + 1))


def tags(cell):
    return cell.metadata.get("tags", [])


@each
def test_outputs_belong_to_their_sources(path):
    notebook = read(path)
    assert notebook.metadata[notebooks.HASH] == notebooks.sources_sha256(notebook), (
        "the code changed after the outputs were made: run `make refresh`"
    )
    assert ran_in_order(path)


@each
def test_outputs_are_light_and_clean(path):
    assert path.stat().st_size <= 400_000
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")
            text = output.get("text", "")
            text += str(output.get("data", {}).get("text/plain"))
            unwanted = r"/home/|/Users/|/roo[t]/|/tmp/|/wor[k]/|C:\\|Warning"
            assert not re.search(unwanted, text), text


@each
def test_cells_fit_on_a_slide(path):
    for cell in code_cells(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 25, cell.source
        assert max(map(len, lines)) <= 88, cell.source


@each
def test_it_follows_the_courses_form(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert "?" in cells[0].source.splitlines()[0]
    code = code_cells(path)
    assert f'mb.start("{path.stem}")' in code[0].source
    assert code[-1].source.strip().endswith("run.finish()")


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@each
def test_exercises_have_solutions_that_are_checked(path):
    """An unsolved check says what is missing; on the solution it says "Right"."""
    marked = [c for c in code_cells(path) if {EXERCISES, SOLUTIONS} & set(tags(c))]
    checks = [c for c in code_cells(path) if "check" in tags(c)]
    assert marked
    for check in checks:
        assert "Not solved yet" in printed(check)
    solutions = [c for c in marked if SOLUTIONS in tags(c)]
    assert len(solutions) == len(marked) / 2
    for solution in solutions:
        assert "Right" in printed(solution) or "assert " in solution.source
    if path.stem[:2] in NEW_FORM:
        assert len(checks) == len(solutions)


@each
def test_claims_are_asserted(path):
    """A method's notebook checks what its prose says by run.claim()."""
    code = "\n".join(cell.source for cell in code_cells(path))
    claims = code.count("run.claim(")
    assert claims >= 5 or path.stem == "00_start_here"
    printed = "".join(
        output.get("text", "") for cell in code_cells(path) for output in cell.outputs
    )
    assert printed.count("It holds here: ") >= claims  # some stand in loops
    assert "does NOT hold" not in printed, "save it on an idle machine"


@each
def test_it_fits_the_stage(path):
    cells = read(path).cells
    lines = sum(len(cell.source.splitlines()) for cell in code_cells(path))
    if path.stem[:2] in NEW_FORM:
        assert len(cells) <= 65 and lines <= 400
        prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        assert re.search(r"!\[[^\]]{15,}\]\(diagrams/", prose), "a drawing, with a text"
        assert GLOSSARY in prose or path.stem.startswith("00")


def test_drawings_are_as_their_code_draws_them():
    spec = importlib.util.spec_from_file_location("draw", DIAGRAMS / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    files = {p.name: p.read_text(encoding="utf-8") for p in DIAGRAMS.glob("*.svg")}
    assert files == draw.drawings(), "run: python notebooks/diagrams/draw.py"
    shown = "".join(c.source for path in PATHS for c in read(path).cells)
    assert all(f"(diagrams/{name})" in shown for name in files)


@each
def test_a_notebook_never_asks_which_profile_it_runs_in(path):
    for cell in code_cells(path):
        assert "MICROBUDGET_PROFILE" not in cell.source
        assert ".profile" not in cell.source


@each
def test_what_it_calls_exists(path):
    """Every mb.module.name, so that a renamed function fails here and not on stage."""
    for cell in code_cells(path):
        for name in re.findall(r"\bmb((?:\.[A-Za-z_]\w*)+)", cell.source):
            found = microbudget
            for part in name.split(".")[1:3]:
                found = getattr(found, part)


def test_the_handout_has_no_outputs_and_no_solutions_and_replaces_no_file(tmp_path):
    written = notebooks.handout(tmp_path)
    assert [path.name for path in written] == [path.name for path in PATHS]
    for cell in (cell for path in written for cell in read(path).cells):
        assert SOLUTIONS not in tags(cell)
        assert not cell.get("outputs")
    copy = written[0]
    copy.write_text("what an attendee wrote")
    with pytest.raises(MicrobudgetError, match="is there already"):
        notebooks.handout(tmp_path)
    assert copy.read_text() == "what an attendee wrote"
    with pytest.raises(MicrobudgetError, match="notebooks themselves"):
        notebooks.handout(PATHS[0].parent / "mine")


def test_a_notebook_runs_without_a_network_and_stays_untouched(tmp_path, monkeypatch):
    """00 under nbmake, in a copy; its ledger goes where it is told."""
    cache = settings.load().cache
    monkeypatch.setenv("MICROBUDGET_HOME", str(tmp_path))
    (tmp_path / "cache").symlink_to(cache)
    monkeypatch.setenv("MICROBUDGET_LEDGER", str(tmp_path))
    path = PATHS[0]
    before = path.read_bytes()
    assert notebooks.run(["00"]) == 0
    assert path.read_bytes() == before
    assert (tmp_path / "00_start_here.json").is_file()
    assert ran_in_order(settings.load().home / "runs" / "notebooks" / path.name)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make notebooks of one cell each in a checkout of their own: name -> path."""
    monkeypatch.setenv("MICROBUDGET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(settings, "project_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()

    def make(**sources):
        paths = {name: tmp_path / "notebooks" / f"{name[1:]}.ipynb" for name in sources}
        for name, source in sources.items():
            cell = nbformat.v4.new_code_cell(source)
            nbformat.write(nbformat.v4.new_notebook(cells=[cell]), paths[name])
        return paths

    return make


def test_a_failing_notebook_fails_the_run(checkout):
    path = checkout(_00_broken="assert False, 'this must be noticed'")["_00_broken"]
    before = path.read_bytes()
    assert notebooks.run(save=True) == 1
    assert path.read_bytes() == before


def test_a_slow_moment_is_told_and_its_notebook_not_saved(checkout, capfd):
    start = "import microbudget as mb\nrun = mb.start('00_slow')\n"
    paths = checkout(
        _00_slow=f"{start}run.claim('it is fast', False, timing=True)",
        _01_fast="import time\nfor i in '12': print(i, flush=True); time.sleep(0.2)",
    )
    assert notebooks.run(["00"]) == 0
    assert notebooks.run(save=True) == 1
    printed = capfd.readouterr().out
    assert printed.count("00_slow: It does NOT hold here: it is fast") == 2
    assert "00_slow: not saved" in printed
    slow, fast = map(read, paths.values())
    assert (notebooks.HASH in slow.metadata, notebooks.HASH in fast.metadata) == (
        False, True,
    )  # fmt: skip
    (output,) = fast.cells[0].outputs  # pieces of one stream become one output
    assert output.text == "1\n2\n"


def test_what_is_edited_while_it_runs_is_not_replaced(checkout, tmp_path, capfd):
    source = tmp_path / "notebooks" / "00_edited.ipynb"
    edit = f"path = {str(source)!r}\nopen(path, 'a').write(' ')"
    checkout(_00_edited=edit)
    assert notebooks.run(save=True) == 1
    assert "edited meanwhile" in capfd.readouterr().out
    assert source.read_text().endswith(" ")


def test_a_notebook_that_phones_out_fails(checkout, tmp_path):
    call = "socket.create_connection(('192.0.2.1', 80), timeout=1)"
    checkout(_00_online=f"import microbudget, socket\n{call}")
    assert notebooks.run() == 1
    executed = (tmp_path / "home/runs/notebooks/00_online.ipynb").read_text()
    assert "uses no network" in executed


@pytest.mark.slow
@each
def test_every_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROBUDGET_LEDGER", str(tmp_path))
    assert notebooks.run([path.stem]) == 0
    assert (Path(tmp_path) / f"{path.stem}.json").is_file()
