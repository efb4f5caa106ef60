"""The engines' packages: imported when first used, without telemetry, or explained."""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

from ..core.errors import EngineError, MicrobudgetError

REMEDY = "pip install 'microbudget[export]'"


def load(name: str) -> ModuleType:
    """Import one of the extra ``export``'s packages, or a module of one.

    OpenVINO and NNCF report their use to their makers through ``openvino_telemetry``
    (unless a file in the home folder forbids it): here it counts as not installed,
    which both of them provide for. That only helps where nothing has imported
    ``openvino_telemetry``, OpenVINO or NNCF earlier in this process.

    Raises:
        EngineError: it isn't installed, or it can't be loaded here.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the packages themselves will drop
            module = importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            f"{name} can't be imported here ({error}). Install the engines with: "
            f"{REMEDY}"
        ) from error
    if name.startswith("onnxruntime"):
        runtime = sys.modules["onnxruntime"]
        runtime.set_default_logger_severity(3)  # errors only
        runtime.disable_telemetry_events()
    return module


@contextlib.contextmanager
def explained(
    what: str, remedy: str = "", error: type[MicrobudgetError] = EngineError
) -> Iterator[None]:
    """Any library's failure as an ``error`` of ours; each library has many kinds."""
    try:
        yield
    except MicrobudgetError:
        raise
    except Exception as failure:
        reason = (str(failure).strip().splitlines() or ["no reason given"])[0][:300]
        raise error(
            f"{what} ({type(failure).__name__}: {reason}). {remedy}".strip()
        ) from failure
