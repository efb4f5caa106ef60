"""Engines that run a GGUF file behind one interface: Ollama, or llama.cpp in process.

A loaded model has ``stream(prompt, …)``, ``speed`` (of the last answer) and
``close()``, and can be used in a ``with`` statement.
"""

from pathlib import Path

from ...core.errors import EngineError
from ...evaluation.generation import Speed

__all__ = ["Speed", "available", "load"]


def available() -> dict[str, str]:
    """Engine -> its version, or why it can't be used here and what to do about it."""
    from . import llama_cpp, ollama

    found = {}
    for name, ask in (("ollama", ollama.version), ("llama.cpp", llama_cpp.version)):
        try:
            found[name] = ask()
        except EngineError as error:
            found[name] = str(error)
    return found


def load(path: str | Path, name: str = "", engine: str = "auto"):
    """A GGUF file, ready to answer.

    Args:
        name: what Ollama shall call it; default: after the file. What was made there is
            deleted by ``close()``.
        engine: ``"auto"`` (Ollama where a server runs, else in process), ``"ollama"``
            or ``"llama.cpp"``.

    Raises:
        EngineError: the engine asked for isn't here, or can't load it.
        QuantizationError: it is no whole GGUF file.
    """
    from . import llama_cpp, ollama

    if engine not in ("auto", "ollama", "llama.cpp"):
        raise EngineError(f"engine={engine!r}: use 'auto', 'ollama' or 'llama.cpp'.")
    if engine == "auto":
        engine = "ollama" if ollama.is_running() else "llama.cpp"
    if engine == "ollama":
        own = f"microbudget-{Path(path).stem}"  # one of an earlier run is replaced
        return ollama.Model.create(path, name or own, replace=not name)
    return llama_cpp.Model(path)
