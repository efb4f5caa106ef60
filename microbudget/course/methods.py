"""The methods of the at-a-glance table, and the chart that leads to them.

A method (in ``methods.toml``) names rows of the run records: its figures are what the
last run measured.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        key: of the decision chart. notebook: the name's first digits.
        row, base: rows of the run record: what the method made, and from what.
        needs: the data that it is trained or calibrated on.
        made: rows whose work it took, if not its own alone; "07:a row" is one of
            another notebook.
        carrier: row with its bytes and latency, where another holds them.
        on_base: the bytes are of what was trained alone, and come on top of the base.
    """

    key: str
    name: str
    notebook: str
    row: str
    base: str
    needs: str
    made: tuple[str, ...] = ()
    carrier: str = ""
    on_base: bool = False


def _read() -> tuple[Method, ...]:
    with open(Path(__file__).with_name("methods.toml"), "rb") as file:
        entries = tomllib.load(file)["method"]
    return tuple(
        Method(**entry | {"made": tuple(entry.get("made", ()))}) for entry in entries
    )


METHODS = _read()
# of the README's table of results: key -> what is done, in plain words
HEADLINES = {
    "transfer": "A classifier from ten images of each kind",
    "lora": "Fine-tuning with 0.3 % of the parameters (LoRA)",
    "gguf": "A language model as a GGUF file (Q4_K_M)",
    "channels": "Half of an image network removed (pruning)",
    "engine-int8": "Another engine, with 8-bit integers (ONNX Runtime)",
    "stacked": "All together: distilled, pruned, 8 bits",
}

# question -> answer -> another question, or the keys of methods
CHART = {
    "What is the problem?": {
        "there is no model for my task yet": {
            "What may change?": {
                "nothing but a new head": ("transfer",),
                "a few weights, for many tasks side by side": ("lora", "bitfit"),
            }
        },
        "it doesn't fit into memory or on the disk": {
            "What is it?": {
                "a language model, on a CPU": ("gguf",),
                "a language model, on a GPU": ("gptq",),
                "a network for images": ("int8", "detector"),
            }
        },
        "it is too slow": {
            "Can it be trained again?": {
                "no": ("engine", "engine-int8"),
                "a little": ("channels", "heads", "low-rank"),
                "yes, and there are examples without labels": ("distil", "distil-lstm"),
            }
        },
        "all of that": ("stacked", "stacked-images"),
    }
}
