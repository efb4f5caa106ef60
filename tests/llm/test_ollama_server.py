"""The tests' own Ollama: it answers as the client and Ollama's documentation expect."""

import hashlib

import httpx
import ollama
import pytest
import tiny_llm
from ollama_server import OllamaServer

from microbudget.llm import gguf

pytest.importorskip("cyllama")
PROMPT, ANSWER = "The small model", "writes €."


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return gguf.write_gguf(tiny_llm.parrot(PROMPT, ANSWER), path)


@pytest.fixture
def server(tmp_path):
    server = OllamaServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(server):
    with ollama.Client(server.url) as client:
        yield client


def test_blobs(server, path):
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    url = f"{server.url}/api/blobs/{digest}"
    with httpx.Client() as client:
        assert client.head(url).status_code == 404
        assert client.post(url, content=b"something else").status_code == 400
        assert client.head(url).status_code == 404
        assert client.post(url, content=path.read_bytes()).status_code == 201
        assert client.head(url).status_code == 200
        assert client.get(f"{server.url}/api/none").status_code == 404
    assert server.blob(digest).read_bytes() == path.read_bytes()


def test_creating_and_deleting(server, client, path):
    files = {"tiny.gguf": client.create_blob(path)}
    said = [part.status for part in client.create("tiny", files=files, stream=True)]
    assert said[-1] == "success"
    (found,) = client.list().models
    assert (found.model, found.size) == ("tiny:latest", path.stat().st_size)
    assert found.details.format == client.show("tiny").details.format == "gguf"
    assert client.delete("tiny").status == "success"
    for act in (client.delete, client.show, lambda name: client.generate(name, "a")):
        with pytest.raises(ollama.ResponseError, match="'tiny' not found") as error:
            act("tiny")
        assert error.value.status_code == 404


def test_files_that_are_no_models(client, tmp_path):
    with pytest.raises(ollama.ResponseError, match="does not exist") as error:
        client.create("tiny", files={"a": f"sha256:{'0' * 64}"})
    assert error.value.status_code == 400
    (tmp_path / "a").write_bytes(b"no GGUF")
    with pytest.raises(ollama.ResponseError, match="invalid file"):
        client.create("tiny", files={"a": client.create_blob(tmp_path / "a")})


def test_generating(client, path):
    client.create("tiny", files={"tiny.gguf": client.create_blob(path)})
    *parts, last = client.generate("tiny", PROMPT, raw=True, stream=True)
    whole = client.generate("tiny", PROMPT, raw=True)
    assert "".join(part.response for part in parts) == whole.response == ANSWER
    assert last.done and whole.done and not any(part.done for part in parts)
    read, written = (
        len(tiny_llm.ids_of(tiny_llm.tokenizer(), text)) for text in (PROMPT, ANSWER)
    )
    for found in (last, whole):
        assert (found.prompt_eval_count, found.eval_count) == (read, written)
        assert min(found.prompt_eval_duration, found.eval_duration) > 0
        assert found.total_duration >= found.prompt_eval_duration + found.eval_duration
    options = {"num_predict": 1}
    short = client.generate("tiny", PROMPT, raw=True, options=options)
    assert short.eval_count == 1
    templated = client.generate("tiny", PROMPT, options=options)
    assert templated.prompt_eval_count > read + 5
