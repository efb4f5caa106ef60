"""Recorded reference runs: results that cost more than a live cell may.

A script under ``tests/benchmarks`` computes each of them once and ``record``s it as
``data/reference/NAME.json``, with its provenance; ``recorded`` shows where it comes
from and returns it, to be set beside what the reader has just computed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core import settings
from ..core.errors import MicrobudgetError
from ..core.files import atomic_path
from ..evaluation.comparison import Difference, compare
from .notebooks import checkout
from .run import provenance


def folder() -> Path:
    """Where the recorded runs lie: ``data/reference`` of the project."""
    return checkout() / "data" / "reference"


def record(name: str, what: str, command: str, data: str, result: dict) -> Path:
    """Write a result with its provenance; call it again as more of it is there.

    Args:
        what: one sentence: what was trained and evaluated, how often, and how long.
        command: that computes it, from the project's folder.
        data: the data sets.
        result: what JSON can hold.
    """
    path = folder() / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    made = {"what": what, "command": command, "data": data}
    made |= {"provenance": provenance(settings.load()), "result": result}
    with atomic_path(path, MicrobudgetError) as temporary:
        temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict:
    """A recorded run with its provenance.

    Raises:
        MicrobudgetError: there is none by this name.
    """
    path = folder() / f"{name}.json"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in folder().glob("*.json")))
        raise MicrobudgetError(f"No recorded run {name!r}. There are: {there}.")
    return json.loads(path.read_text(encoding="utf-8"))


def recorded(name: str) -> dict:
    """Say what a recorded run is and where it comes from; return its result."""
    from IPython.display import Markdown, display

    made = load(name)
    origin = made["provenance"]
    torch, processor = origin["versions"]["torch"], origin["processor"]
    display(
        Markdown(
            f"**Recorded, not computed here.** {made['what']} Data: {made['data']}. "
            f"Made on {origin['date']} with `{made['command']}` ({processor}, "
            f"torch {torch})."
        )
    )
    return made["result"]


def differences(result: dict, base: str) -> dict[str, Difference]:
    """Of every recorded method to one of them, over seeds and items; the best first.

    Args:
        result: ``test``, how many items, and ``methods``: name -> ``hits`` of its runs.
    """
    hits = {n: unpack(m["hits"], result["test"]) for n, m in result["methods"].items()}
    found = {n: compare(hits[base], own) for n, own in hits.items() if n != base}
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def kl_difference(a: dict, b: dict) -> Difference:
    """b's KL divergence minus a's, of two recorded ways to quantize the same model.

    One run of each holds the choice of text, several also that of the calibration.

    Args:
        a, b: ``runs``, each with its ``divergence`` on pieces of a text, nats.
    """
    scores = [np.array([r["divergence"] for r in each["runs"]]) for each in (a, b)]
    scores = [s[0] if len(s) == 1 else s for s in scores]
    return compare(*scores, scale=1000, unit="thousandths of a nat")


def pack(hits) -> str:
    """Right or wrong on each item (items,) as a short string."""
    return np.packbits(np.asarray(hits, dtype=bool)).tobytes().hex()


def unpack(packed: Sequence[str], items: int) -> np.ndarray:
    """Float64 (runs, items) of 0 and 1, from strings that ``pack`` made."""
    rows = [np.frombuffer(bytes.fromhex(one), dtype=np.uint8) for one in packed]
    return np.unpackbits(np.stack(rows), axis=1)[:, :items].astype(float)
