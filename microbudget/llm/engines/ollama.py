"""Ollama: a server on this machine, through its own client.

A GGUF file reaches it as a blob, named by its sha256, from which a model is created
(which servers from version 0.5.5 on can do).
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ...assets.gguf_file import read_gguf
from ...core import settings
from ...core.errors import EngineError
from ...evaluation.generation import Speed

_ASK_S = 2.0  # seconds to wait when asking whether a server is there
_SLOW_S = 120.0  # seconds without a byte of an answer, until it counts as stuck


def version(host: str | None = None) -> str:
    """The server's version.

    Args:
        host: default: the variable OLLAMA_HOST, else this machine's port 11434.

    Raises:
        EngineError: no server, or none that answers in time and in Ollama's way.
    """
    with _client(host, _ASK_S) as client:  # the client has no call for this
        answer = client._request_raw("GET", "/api/version").json()
        return f"ollama {answer['version']}"


class Model(contextlib.AbstractContextManager):
    """A GGUF file, on the server until it is closed.

    Attributes:
        name: on the server, "microbudget-" and the file's; one of that name is
            replaced.
        speed: of the last answer, from the server's own clock.
    """

    engine = "ollama"

    def __init__(self, path: str | Path, host: str | None = None):
        """Create a model from a local file.

        Raises:
            QuantizationError: no whole GGUF file.
            EngineError: no server, or it refuses the file.
        """
        file = read_gguf(path)
        self.name, self.speed = f"microbudget-{file.path.stem}", None
        self._host = host
        with _client(host, _SLOW_S) as client:
            files = {file.path.name: client.create_blob(file.path)}
            client.create(model=self.name, files=files)

    def stream(self, prompt: str, max_tokens: int = 64) -> Iterator[str]:
        """Generate an answer, piece by piece; as ``llama_cpp.Model.stream``.

        Raises:
            EngineError: an empty prompt, or the server broke off, stalled or failed.
        """
        if not prompt.strip():
            raise EngineError("The prompt is empty.")
        options = {"num_predict": max_tokens, "temperature": 0, "repeat_penalty": 1,
                   "num_thread": settings.load().threads}  # fmt: skip
        self.speed, last = None, None
        with _client(self._host, _SLOW_S) as client:
            for last in client.generate(
                self.name, prompt, raw=True, stream=True, options=options
            ):
                if last.response:
                    yield last.response
        if last is None or not last.done:
            raise EngineError(
                "The Ollama server broke off in the middle of its answer. Look at its "
                "log (`ollama serve` prints it), then run this again."
            )
        self.speed = Speed(
            prompt_tokens=last.prompt_eval_count or 0,
            prefill_s=(last.prompt_eval_duration or 0) / 1e9,
            # the first came with the prompt, as with the other engines
            new_tokens=max(0, (last.eval_count or 0) - 1),
            decode_s=(last.eval_duration or 0) / 1e9,
        )

    def close(self) -> None:
        """Delete the model from the server."""
        with _client(self._host, _SLOW_S) as client:
            client.delete(self.name)

    def __exit__(self, *exception) -> None:
        self.close()


def _address(text: str) -> str:
    """A server's address in any form that people write: with a scheme, or a port.

    Raises:
        EngineError: it is none.
    """
    plain = text.strip().strip("\"'").rstrip("/")
    if plain.count(":") > 1 and "[" not in plain and "/" not in plain:
        plain = f"[{plain}]"  # a bare IPv6 address
    if "://" not in plain:
        plain = f"http://{plain or '127.0.0.1'}"
    try:
        parts = urlsplit(plain)
        scheme, host, port = parts.scheme, parts.hostname, parts.port or 11434
        if scheme not in ("http", "https") or not host or " " in host:
            raise ValueError("expected http:// or https://, and a name")
    except ValueError as error:
        raise EngineError(
            f"OLLAMA_HOST={text!r} is no address ({error}). Write HOST:PORT, such as "
            "127.0.0.1:11434, or unset it."
        ) from error
    host = "127.0.0.1" if host == "0.0.0.0" else host  # where it listens: everywhere
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port}{parts.path}"


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """The environment without what names proxies or Ollama's host."""
    names = {"all_proxy", "http_proxy", "https_proxy", "no_proxy", "ollama_host"}
    kept = {k: v for k, v in os.environ.items() if k.lower() in names}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def _client(host: str | None, timeout: float) -> Iterator:
    """A client; what it and its HTTP library raise becomes an EngineError."""
    address = _address(host or os.environ.get("OLLAMA_HOST") or "")
    # both packages build clients when they are imported, from variables that may be
    # odd: proxies are of no use for a server on this machine, so they aren't looked at
    with _without_proxies():
        import httpx
        import ollama
    try:
        yield ollama.Client(address, timeout=timeout, trust_env=False)
    except httpx.TimeoutException as error:
        raise EngineError(
            f"The Ollama server at {address} did not answer in time: it is busy or "
            "stuck. Wait, or restart it (`ollama serve`)."
        ) from error
    except (ConnectionError, httpx.ConnectError) as error:
        raise EngineError(
            f"No Ollama server at {address}. Start it with `ollama serve` (from "
            "https://ollama.com/download), or set OLLAMA_HOST to where it runs."
        ) from error
    except (ollama.ResponseError, httpx.HTTPError,
            ValueError, TypeError, KeyError, AttributeError) as error:  # fmt: skip
        raise EngineError(
            f"The server at {address} refused or broke off, is older than 0.5.5, or "
            f"isn't Ollama ({type(error).__name__}: {str(error)[:200]}). Look at its "
            "log, update it, or set OLLAMA_HOST to Ollama's address."
        ) from error
