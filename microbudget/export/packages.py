"""The engines' packages: imported when first used, without telemetry, or explained."""

import importlib
import sys
import warnings
from types import ModuleType

from ..core.errors import EngineError

REMEDY = "pip install 'microbudget[export]'"


def load(name: str, part: str = "") -> ModuleType:
    """Import one of the extra ``export``'s packages.

    OpenVINO and NNCF report their use to their makers through ``openvino_telemetry``
    (unless a file in the home folder forbids it): here it counts as not installed,
    which both of them provide for. That only helps where nothing has imported
    ``openvino_telemetry``, OpenVINO or NNCF earlier in this process.

    Args:
        name: onnx, onnxscript, onnxruntime, openvino or nncf.
        part: a module inside, such as ``quantization``.

    Raises:
        EngineError: it isn't installed, or it can't be loaded here.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the packages themselves will drop
            module = importlib.import_module(name)
            if part:
                module = importlib.import_module(f"{name}.{part}")
    except ImportError as error:
        raise EngineError(
            f"{name} can't be imported here ({error}). Install the engines with: "
            f"{REMEDY}"
        ) from error
    if name == "onnxruntime":
        runtime = sys.modules[name]
        runtime.set_default_logger_severity(3)  # errors only
        getattr(runtime, "disable_telemetry_events", lambda: None)()
    return module


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or its kind; at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
