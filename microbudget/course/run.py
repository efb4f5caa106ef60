"""What a run cost and what it achieved: one JSON a notebook.

``run = mb.start("01_transfer_learning")`` begins the run record,
``with run.measure("frozen backbone + linear head") as row: row.quality(accuracy=…)``
adds a row, ``run.finish()`` adds them up, prints the budget and saves the record.
"""

import atexit
import json
import os
import platform
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from .. import __version__, assets
from ..core import settings
from ..core.errors import MicrobudgetError
from ..core.files import atomic_path
from ..evaluation.memory import peak_memory
from ..evaluation.sizes import bytes_on_disk, count_parameters
from . import sizes

SCHEMA = 2
FAILED = "It does NOT hold here:"  # a claim
_PACKAGES = ("torchvision", "transformers", "accelerate", "peft", "bitsandbytes",
             "torchao", "gguf", "cyllama", "numpy", "scikit-learn", "onnx",
             "onnxruntime", "openvino", "nncf")  # fmt: skip


@dataclass
class Row:
    """One measured piece of work.

    Attributes:
        wall_s, cpu_s: seconds by the clock, and of processor time over all threads.
        peak_memory_bytes: highest resident memory of the process meanwhile.
        bytes_written: what the row's author says was saved (``row.saved(path)``).
        scores: metric -> value; those in ``settings.LOWER_IS_BETTER`` (latency_ms,
            megabytes, loss, wer …) are better when lower, all others when higher.
        cost: ``wall_s`` at the stated price per hour.
    """

    name: str
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    peak_device_bytes: int = 0
    bytes_written: int = 0
    parameters: int | None = None
    trainable: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    cost: float = 0.0

    def quality(self, **scores: float) -> None:
        """Record metrics, such as ``accuracy=0.87``."""
        self.scores |= {name: float(value) for name, value in scores.items()}

    def model(self, model) -> None:
        """Record how many parameters a model has and how many are trainable."""
        counted = count_parameters(model)
        self.parameters, self.trainable = counted.total, counted.trainable

    def saved(self, path: str | os.PathLike) -> None:
        """Record the bytes on disk of what was written."""
        self.bytes_written += bytes_on_disk(path)


class Run:
    """A notebook's run; made by :func:`start`."""

    def __init__(self, notebook: str, here: settings.Settings):
        self.notebook = notebook
        self.settings = here
        self.config = sizes.config(notebook)  # how much to do in this profile
        self.rows: list[Row] = []
        self.data: dict[str, str] = {}
        self._strict = True  # claims that fail stop the notebook
        self._whole = ExitStack()
        self._total = self._whole.enter_context(self._measured(Row("whole notebook")))
        atexit.register(self._whole.close)  # a process may end without run.finish()

    @contextmanager
    def measure(self, name: str):
        """Measure the block as a row called ``name``; running it again replaces it."""
        with self._measured(Row(name)) as row:
            yield row
        self.rows = [r for r in self.rows if r.name != name] + [row]

    def uses(self, name: str, description: str, *, checked: bool = True) -> None:
        """Record which data the figures were made on.

        Args:
            checked: whether the course's claims were checked on them; on data of the
                reader's own they may fail, and are then only reported.
        """
        self.data[name] = description
        self._strict = self._strict and checked

    def claim(
        self, text: str, holds: bool, measured: object = "", *, timing: bool = False
    ) -> None:
        """Say whether what the prose claims holds in this very run, and assert it.

        Args:
            measured: the number that decides, such as a ``Difference``.
            timing: it is about time, which a busy machine or another device may turn
                round: it is only reported, as every claim is on data of the reader's.
        """
        found = f"{text} ({measured})." if str(measured) else text
        print(f"{'It holds here:' if holds else FAILED} {found}")
        assert holds or timing or not self._strict, found

    def saw(self, text: str) -> None:
        """Show a debrief, in Markdown, under the words that readers learn to look for.

        Args:
            text: full sentences, made from the run's own variables.
        """
        from IPython.display import Markdown, display

        display(Markdown(f"**What we saw.** {text}"))

    def finish(self) -> dict:
        """End the run: print the budget, write the record as JSON and return it."""
        self._whole.close()
        profile, total = self.settings.profile, self._total
        total.bytes_written = sum(row.bytes_written for row in self.rows)
        names = assets.names(profile, self.notebook)
        received = sum(assets.bytes_received(name, profile) for name in names)
        record = {
            "schema": SCHEMA,
            "notebook": self.notebook,
            "provenance": provenance(self.settings) | {"data": self.data},
            "price_per_hour": self.settings.price_per_hour,
            "currency": settings.CURRENCY,
            "bytes_downloaded": received,
            "total": asdict(total),
            "rows": [asdict(row) for row in self.rows],
        }
        path = self.settings.ledger / f"{self.notebook}.json"
        with atomic_path(path, MicrobudgetError) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(
            f"budget of {self.notebook}\n"
            f"  time        {total.wall_s:,.0f} s by the clock, "
            f"{total.cpu_s:,.0f} s of processor\n"
            f"  memory      {total.peak_memory_bytes / 1e6:,.0f} MB at the peak\n"
            f"  downloaded  {received / 1e6:,.1f} MB, once\n"
            f"  written     {total.bytes_written / 1e6:,.1f} MB\n"
            f"  money       {total.cost:.4f} {settings.CURRENCY} at "
            f"{self.settings.price_per_hour:.2f} {settings.CURRENCY} an hour"
        )
        return record

    @contextmanager
    def _measured(self, row: Row):
        # the process's time is of all threads; finished children count, too
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        with peak_memory() as peak:
            yield row
        row.wall_s = time.perf_counter() - wall
        row.cpu_s = sum(os.times()[:4]) - cpu
        row.peak_memory_bytes, row.peak_device_bytes = peak.highest, peak.device
        row.cost = row.wall_s / 3600 * self.settings.price_per_hour


def start(notebook: str) -> Run:
    """Begin a notebook: seed everything, set the threads, print one banner line.

    Args:
        notebook: its name, such as ``"01_transfer_learning"``.

    Raises:
        SettingsError: an environment variable that has no meaning.
    """
    import torch

    from ..core.precision import fast_bf16
    from ..plotting import style

    here = settings.load()
    # tqdm asks for ipywidgets; the course's bars are plain text on purpose
    warnings.filterwarnings("ignore", message="IProgress not found")
    torch.set_num_threads(here.threads)
    settings.seed_everything(here.seed)
    torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU, too: it is compared
    style.use_house_style()
    device = settings.device()
    arithmetic = "bf16" if fast_bf16(device) else "fp32"
    print(
        f"microbudget {__version__} · {notebook} · profile {here.profile} · "
        f"{device}, {here.threads} threads, fast {arithmetic} · seed {here.seed} · "
        f"torch {torch.__version__} · Python {platform.python_version()}"
    )
    _say_if_busy(here.threads)
    return Run(notebook, here)


def _say_if_busy(threads: int) -> None:
    """One line when other work leaves fewer cores free than the course has threads."""
    import psutil

    cores = psutil.cpu_count()
    busy = cores * psutil.cpu_percent(interval=0.2) / 100
    if cores - busy > threads - 0.5:
        return
    print(
        f"This machine is busy ({busy:.1f} of {cores} cores): the times below will be "
        "too long, and small trainings may take ten times as long, because torch's "
        "threads spin while they wait. Close what is running, or start Jupyter with "
        "OMP_WAIT_POLICY=passive, which helps here and costs time on an idle machine."
    )


def read_records(folder: Path) -> dict[str, dict]:
    """Notebook -> its run record, of those in a folder, in the course's order.

    Raises:
        MicrobudgetError: a file that is no run record of this version.
    """
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']}")
        except (ValueError, KeyError, TypeError) as error:
            raise MicrobudgetError(
                f"{path} is not a run record of this version ({error}). Delete it and "
                "run its notebook again."
            ) from error
        records[record["notebook"]] = record
    return records


def provenance(here: settings.Settings) -> dict:
    """What a figure must be read with: versions, hardware, profile, seed, date."""
    import torch

    from ..core.precision import fast_bf16, processor_name

    device = settings.device()
    installed = {package.name: package.version for package in distributions()}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "profile": here.profile,
        "seed": here.seed,
        "device": torch.cuda.get_device_name() if "cuda" in device else device,
        "processor": processor_name(),
        "threads": here.threads,
        "bfloat16": fast_bf16(device),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # with the build, such as +cpu
            **{name: installed.get(name, "absent") for name in _PACKAGES},
        },
    }
