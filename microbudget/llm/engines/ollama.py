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

from ...assets import gguf_file
from ...core import settings
from ...core.errors import EngineError
from ...evaluation.generation import Speed

OLDEST = Version("0.5.5")  # since then models are created from files by their digest
_ASK_S = 2.0  # seconds to wait when asking whether a server is there
_SLOW_S = 120.0  # seconds without a byte of an answer, until it counts as stuck


def is_running(host: str | None = None) -> bool:
    """Whether a server that is new enough answers."""
    try:
        version(host)
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


def models(host: str | None = None) -> dict[str, int]:
    """The server's models: name -> bytes on its disk.

    Raises:
        EngineError: as ``version``.
    """
    client = _client(host, _SLOW_S)
    with _clear_errors(client):
        return {found.model: int(found.size or 0) for found in client.list().models}


class Model:
    """A model on the server.

    Attributes:
        size: bytes on the server's disk, as it says.
        speed: of the last answer, from the server's own clock.
    """

    engine = "ollama"

    def __init__(self, name: str, host: str | None = None, made_here: bool = False):
        self.name, self.speed, self._made_here = name, None, made_here
        self._client = _client(host, _SLOW_S)
        try:
            self.size = models(host).get(_full(name), 0)
        except EngineError:
            with contextlib.suppress(EngineError):
                self.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | Path,
        name: str,
        host: str | None = None,
        replace: bool = False,
    ) -> "Model":
        """Create a model from a local GGUF file.

        Args:
            replace: overwrite a model of that name.

        Raises:
            QuantizationError: no whole GGUF file. EngineError: no server, the name is
                taken, or the server refuses the file.
        """
        file = gguf_file.read(path)
        version(host)
        if not replace and _full(name) in models(host):
            raise EngineError(
                f"Ollama has a model {name!r} already. Choose another name, pass "
                f"replace=True, or remove it with `ollama rm {name}`."
            )
        client = _client(host, _SLOW_S)
        with _clear_errors(client):
            digest = client.create_blob(file.path)
            made = client.create(model=name, files={file.path.name: digest})
            if made.status != "success":
                raise EngineError(f"Ollama did not create {name!r}: {made.status}.")
        return cls(name, host, made_here=True)

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
            last.prompt_eval_count or 0, (last.prompt_eval_duration or 0) / 1e9,
            # the first came with the prompt, as with the other engines
            max(0, (last.eval_count or 0) - 1), (last.eval_duration or 0) / 1e9,
        )  # fmt: skip

    def close(self) -> None:
        """Delete the model from the server if it was made here; else leave it alone."""
        if self._made_here:
            with _clear_errors(self._client):
                self._client.delete(self.name)
            self._made_here = False

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


@contextlib.contextmanager
def _clear_errors(client: ollama.Client) -> Iterator[None]:
    """Turn what the client and its HTTP library raise into an EngineError."""
    address = _address(client)
    try:
        yield
    except EngineError:
        raise
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
    except httpx.HTTPError as error:
        raise EngineError(
            f"The Ollama server at {address} broke off ({error}). Look at its log, "
            "then run this again."
        ) from error
    except ollama.ResponseError as error:
        raise EngineError(
            f"The Ollama server at {address} refused ({error.status_code}): "
            f"{str(error.error)[:200]}"
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise EngineError(
            f"What answers at {address} is no Ollama server, or a broken one "
            f"({type(error).__name__}). Set OLLAMA_HOST to Ollama's address."
        ) from error


def _client(host: str | None, timeout: float) -> ollama.Client:
    try:
        return ollama.Client(host, timeout=timeout)
    except ValueError as error:
        raise EngineError(
            f"OLLAMA_HOST is no address ({error}): set it to something like "
            "127.0.0.1:11434, or unset it."
        ) from error


def _address(client: ollama.Client) -> str:
    return str(client._client.base_url).rstrip("/")


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
