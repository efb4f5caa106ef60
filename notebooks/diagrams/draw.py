"""Draw them all: ``python notebooks/diagrams/draw.py`` writes every SVG in this folder.

Each module here has a function for each of its drawings; ``lora()`` becomes lora.svg.
"""

import sys
from importlib import import_module
from inspect import getmembers, isfunction
from pathlib import Path

FOLDER = Path(__file__).parent
OTHERS = ("draw", "drawing")


def drawings() -> dict[str, str]:
    """Name of the file -> SVG."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {}
        for path in sorted(FOLDER.glob("*.py")):
            if path.stem in OTHERS:
                continue
            module = import_module(path.stem)
            for name, function in getmembers(module, isfunction):
                if function.__module__ == path.stem and not name.startswith("_"):
                    found[f"{name}.svg"] = str(function())
        return found
    finally:
        sys.path.remove(str(FOLDER))


if __name__ == "__main__":
    for name, svg in drawings().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
        print(name)
