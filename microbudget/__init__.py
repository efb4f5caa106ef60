"""microbudget: a course on making machine-learning models small and cheap.

``import microbudget as mb`` loads nothing heavy. ``mb.start("01_…")`` begins a
notebook. The other names are folders, a chapter's or a shared one; their contents load
when they are first used.
"""

from importlib import import_module

from .core import compat, settings

__version__ = "0.1.0"

settings.go_quiet_and_offline()
compat.prepare_imports()

FLOORS = ("core", "assets", "data", "models", "training", "evaluation", "plotting")
CHAPTERS = (
    "transfer",  # 01
    "speech_distillation",  # 02
    "finetuning",  # 03
    "llm",  # 04
    "quantization",  # 05
    "distillation",  # 06
    "pruning",  # 07
    "low_rank",  # 08
    "export",  # 09
    "detection",  # 10
)
_NAMES = ("start", *FLOORS, *CHAPTERS, "course")  # from top to bottom


def __getattr__(name: str):
    if name == "start":
        from .course.run import start

        return start
    if name not in _NAMES:
        raise AttributeError(f"module 'microbudget' has no attribute {name!r}")
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
