"""Ollama and llama.cpp behind one interface, against a server that really generates."""

import os
import socket
import subprocess
import sys

import pytest
import tiny_llm
from ollama_server import OllamaServer

from microbudget.core import settings
from microbudget.core.errors import EngineError, QuantizationError
from microbudget.llm import engines, gguf
from microbudget.llm.engines import llama_cpp, ollama

pytest.importorskip("cyllama")
PROMPT = "The small model"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return gguf.write_gguf(tiny_llm.llm(hidden=64), path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    server = OllamaServer(tmp_path / "blobs")
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    yield server
    server.close()


@pytest.fixture
def nobody(monkeypatch) -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("OLLAMA_HOST", address)
    return address


@pytest.fixture
def model(server, path):
    return ollama.Model(path)


def text_of(model, prompt: str = PROMPT, *args) -> str:
    return "".join(model.stream(prompt, *args))


def test_a_file_becomes_a_model_and_answers(server, path):
    with ollama.Model(path) as model:
        assert [*server.models] == ["microbudget-tiny:latest"]
        assert (model.name, model.speed) == ("microbudget-tiny", None)
        pieces = list(model.stream(PROMPT, 20))
        assert len(pieces) > 1
        with llama_cpp.Model(path) as here:
            assert "".join(pieces) == text_of(here, PROMPT, 20)
            assert model.speed.prompt_tokens == here.speed.prompt_tokens
        assert model.speed.new_tokens == 20 - 1  # the first came with the prompt
        assert model.speed.prefill_s > 0 < model.speed.decode_s
        assert "writes" in str(model.speed)
    assert not server.models


def test_the_prompt_is_sent_as_it_is(model, server):
    """The template is around it already, and the likeliest token is chosen."""
    text_of(model, "<|im_start|>user\nhi<|im_end|>\n", 3)
    (body,) = server.asked("POST", "/api/generate")
    assert body["raw"] is body["stream"] is True
    assert body["prompt"] == "<|im_start|>user\nhi<|im_end|>\n"
    assert body["options"] == {"num_predict": 3, "temperature": 0, "repeat_penalty": 1,
                               "num_thread": settings.load().threads}  # fmt: skip


def test_an_exception_deletes_the_model(server, path):
    with pytest.raises(ZeroDivisionError), ollama.Model(path):
        assert server.models
        _ = 1 / 0
    assert not server.models


def test_an_answer_nobody_wants_is_dropped(model):
    pieces = model.stream(PROMPT, 20)
    assert next(pieces)
    pieces.close()
    assert text_of(model, PROMPT, 20)  # the next one is whole


def test_a_model_that_isnt_there(model, server):
    server.models.clear()
    with pytest.raises(EngineError, match=r"refused .*model .* not found .*404"):
        text_of(model)


def test_nobody_there(nobody, path):
    for ask in (ollama.version, lambda: ollama.Model(path)):
        with pytest.raises(EngineError, match=f"No Ollama server at {nobody}.*serve"):
            ask()


def test_a_stuck_server(path, server, monkeypatch):
    monkeypatch.setattr(ollama, "_ASK_S", 0.3)
    monkeypatch.setattr(ollama, "_SLOW_S", 0.3)
    hasty = ollama.Model(path)
    server.delay = 3.0
    with pytest.raises(EngineError, match="did not answer in time: it is busy or"):
        text_of(hasty)
    server.delay, server.stall = 0.0, 3.0
    pieces = hasty.stream(PROMPT)
    assert next(pieces)
    with pytest.raises(EngineError, match="did not answer in time"):
        list(pieces)


@pytest.mark.parametrize("cut", ["socket", "done"])
def test_a_stream_that_breaks_off(model, server, cut):
    server.cut = cut
    pieces = model.stream(PROMPT)
    assert next(pieces)
    with pytest.raises(EngineError, match=r"broke off.*log"):
        list(pieces)
    assert model.speed is None
    server.cut = ""
    assert text_of(model)


def test_an_error_in_the_stream(model, server):
    server.error_line = "an error was encountered while running the model: CUDA"
    with pytest.raises(EngineError, match=r"refused .*running the model: CUDA"):
        text_of(model)


def test_errors_of_the_server(model, server, path):
    for api in ("/api/generate", "/api/create"):
        server.fail[api] = (500, "llama runner process has terminated")
    says = r"refused .*llama runner process .*500"
    with pytest.raises(EngineError, match=says):
        text_of(model)
    with pytest.raises(EngineError, match=says):
        ollama.Model(path)


@pytest.mark.parametrize(
    "content",
    [b"<html>Welcome</html>", b"", b"{", b"{}", b"[]", b"3"],
)  # fmt: skip
def test_another_kind_of_server(model, server, content):
    server.raw = dict.fromkeys(["/api/version", "/api/generate"], content + b"\n")
    with pytest.raises(EngineError, match=r"isn't Ollama .*set OLLAMA_HOST"):
        ollama.version()
    with pytest.raises(EngineError):
        text_of(model)


def test_a_damaged_file_is_never_sent(server, path, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-5000])
    missing = tmp_path / "none.gguf"
    for file, says in ((cut, "is damaged or cut short"), (missing, "can't be read")):
        for engine in (ollama, llama_cpp):
            with pytest.raises(QuantizationError, match=says):
                engine.Model(file)
    assert not server.requests


@pytest.mark.parametrize("prompt", ["", " \n"])
@pytest.mark.parametrize("engine", [ollama, llama_cpp])
def test_empty_prompts(server, path, engine, prompt):
    with (
        engine.Model(path) as model,
        pytest.raises(EngineError, match="The prompt is empty"),
    ):
        text_of(model, prompt)


def test_ollama_where_it_runs_else_in_process(server, path):
    with engines.load(path) as model:
        assert (model.engine, model.name) == ("ollama", "microbudget-tiny")
        assert [*server.models] == ["microbudget-tiny:latest"]
    assert not server.models
    found = engines.available()
    assert found["ollama"] == "ollama 0.12.3"
    assert found["llama.cpp"].startswith("cyllama 0.")
    server.fail["/api/version"] = (500, "broken")
    with engines.load(path) as model:
        assert model.engine == "llama.cpp in process"


def test_what_isnt_available(nobody, path, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "cyllama.llama", None)
        llama_cpp._library.cache_clear()
        found = engines.available()
        with pytest.raises(EngineError, match="pip install cyllama"):
            engines.load(path)
    assert found["ollama"].startswith("No Ollama server at")
    assert "pip install cyllama" in found["llama.cpp"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", "http://127.0.0.1:11434"), ("localhost", "http://localhost:11434"),
        ("127.0.0.1:11434/", "http://127.0.0.1:11434"), ("::1", "http://[::1]:11434"),
        ('"127.0.0.1:8080"', "http://127.0.0.1:8080"), ("[::1]:9", "http://[::1]:9"),
        ("https://host/sub", "https://host:11434/sub"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
    ],
)  # fmt: skip
def test_ollamas_address_in_every_form(text, address):
    assert ollama._address(text) == address


@pytest.mark.parametrize("text", ["http://host:port", "h:99999", "[::1", "ftp://x"])
def test_what_is_no_address(text):
    with pytest.raises(EngineError, match=r"OLLAMA_HOST=.* is no address"):
        ollama._address(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("all_proxy", "socks://127.0.0.1:9/"),
     ("NO_PROXY", "localhost, ::1, fe80::/10")],
)  # fmt: skip
def test_odd_proxies_dont_keep_the_engines_away(name, value):
    """In a fresh process: the client reads these when it is imported."""
    code = "import microbudget as mb; print(mb.llm.engines.available()['ollama'])"
    environment = {**os.environ, name: value, "HTTP_PROXY": "http://127.0.0.1:9"}
    environment["OLLAMA_HOST"] = "127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "No Ollama server at http://127.0.0.1:9" in done.stdout, done.stderr
