"""Engines that run a GGUF file behind one interface: Ollama, or llama.cpp in process.

A loaded model has ``stream(prompt, max_tokens)``, ``speed`` (of the last answer) and
``close()``, and can be used in a ``with`` statement.
"""

from pathlib import Path

from ...core.errors import EngineError
from ...core.lazy import attach

__getattr__, _ = attach(__name__, {"llama_cpp": "llama_cpp", "ollama": "ollama"})


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


def load(path: str | Path):
    """A GGUF file, ready to answer: by Ollama where a server runs, else in process.

    Raises:
        EngineError: the engine isn't here, or can't load the file.
        QuantizationError: it is no whole GGUF file.
    """
    from . import llama_cpp, ollama

    try:
        ollama.version()
    except EngineError:
        return llama_cpp.Model(path)
    return ollama.Model(path)
