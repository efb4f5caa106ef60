"""Ollama: a server on this machine, through its own client.

A GGUF file reaches it as a blob, named by its sha256, from which a model is created.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
from packaging.version import Version

from ...assets.gguf_file import read_gguf
from ...core import settings
from ...core.errors import EngineError
from ...evaluation.generation import Speed

OLDEST = Version("0.5.5")  # since then models are created from files by their digest
_ASK_S = 2.0  # seconds to wait when asking whether a server is there
_SLOW_S = 120.0  # seconds without a byte of an answer, until it counts as stuck


def is_running() -> bool:
    """Whether a server that is new enough answers."""
    try:
        version()
    except EngineError:
        return False
    return True


def version(host: str | None = None) -> str:
    """The server's version.

    Args:
        host: default: the variable OLLAMA_HOST, else this machine's port 11434.

    Raises:
        EngineError: no server, none that answers in time or in JSON, or one too old.
    """
    client = _client(host, _ASK_S)
    with _clear_errors(client):  # the client has no call for this
        answer = client._request_raw("GET", "/api/version").json()
        # one that was built from a checkout says 0.12.3-4-gabc1234
        numbers = re.match(r"\d+\.\d+\.\d+", answer["version"])
        found = Version(numbers.group())
    if Version("0.0.0") < found < OLDEST:  # 0.0.0: built from source
        raise EngineError(
            f"The Ollama server is version {found}; {OLDEST} or newer is needed to "
            "create models from local files. Update it from https://ollama.com/download."
        )
    return f"ollama {found}"


class Model:
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
        version(host)
        self._client = _client(host, _SLOW_S)
        with _clear_errors(self._client):
            digest = self._client.create_blob(file.path)
            files = {file.path.name: digest}
            status = self._client.create(model=self.name, files=files).status
        if status != "success":
            raise EngineError(f"Ollama did not create {self.name!r}: {status}.")

    def stream(
        self, prompt: str, max_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Write an answer, piece by piece; as ``llama_cpp.Model.stream``.

        Raises:
            EngineError: an empty prompt, or the server broke off, stalled or failed.
        """
        if not prompt.strip():
            raise EngineError("The prompt is empty.")
        options = {"num_predict": max_tokens, "temperature": temperature, "seed": seed,
                   "repeat_penalty": 1.0, "top_k": 0, "top_p": 1.0,
                   "num_thread": settings.load().threads}  # fmt: skip
        last = None
        with _clear_errors(self._client):
            for part in self._client.generate(
                self.name, prompt, raw=True, stream=True, options=options
            ):
                last = part
                if part.response:
                    yield part.response
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
        with _clear_errors(self._client):
            self._client.delete(self.name)

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


@contextlib.contextmanager
def _clear_errors(client: ollama.Client) -> Iterator[None]:
    """Turn what the client and its HTTP library raise into an EngineError."""
    address = str(client._client.base_url).rstrip("/")
    try:
        yield
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
    except ollama.ResponseError as error:
        raise EngineError(
            f"The Ollama server at {address} refused ({error.status_code}): "
            f"{str(error.error)[:200]}"
        ) from error
    except (httpx.HTTPError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise EngineError(
            f"The server at {address} broke off, or isn't Ollama "
            f"({type(error).__name__}: {error}). Look at its log, or set OLLAMA_HOST "
            "to Ollama's address."
        ) from error


def _client(host: str | None, timeout: float) -> ollama.Client:
    try:
        return ollama.Client(host, timeout=timeout)
    except ValueError as error:
        raise EngineError(
            f"OLLAMA_HOST is no address ({error}): set it to something like "
            "127.0.0.1:11434, or unset it."
        ) from error
