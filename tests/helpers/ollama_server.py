"""A server on loopback that speaks Ollama's HTTP API and really generates.

Uploaded blobs become files, which ``llama_cpp.Model`` answers from. Requests and
answers are those of Ollama's docs/api.md and of its Python client.
"""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from microbudget.assets.gguf_file import read_gguf
from microbudget.core.errors import MicrobudgetError
from microbudget.llm.engines import llama_cpp


class Refused(Exception):
    """An answer with an error: status, message."""


class OllamaServer:
    """Ollama's API, and faults on request.

    Attributes:
        version: what it says it is.
        models: full name -> digest of its blob.
        requests: (method, path, JSON body or None) of all that was asked for.
        delay: seconds before every answer.
        stall: seconds in the middle of every stream.
        cut: break off a stream after its first piece: ``"socket"`` closes the
            connection, ``"done"`` ends in good order but without the last line.
        error_line: put such an error after a stream's first piece.
        raw: path -> bytes to answer with, instead.
        fail: path -> (status, message).
    """

    def __init__(self, folder: Path):
        self.folder, self.version = folder, "0.12.3"
        self.models: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict | None]] = []
        self.delay = self.stall = 0.0
        self.cut, self.error_line = "", ""
        self.raw: dict[str, bytes] = {}
        self.fail: dict[str, tuple[int, str]] = {}
        self.closing, self.lock = threading.Event(), threading.Lock()
        self._loaded: dict[str, llama_cpp.Model] = {}
        handler = type("Handler", (_Handler,), {"ollama": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(
            target=self._http.serve_forever, args=(0.02,), daemon=True
        ).start()

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for model in self._loaded.values():
                model.close()

    def asked(self, method: str, path: str) -> list[dict | None]:
        """Bodies of the requests to a path."""
        return [body for m, p, body in self.requests if (m, p) == (method, path)]

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def model(self, name: str) -> str:
        """The digest of a model."""
        try:
            return self.models[full(name)]
        except KeyError:
            raise Refused(404, f"model '{name}' not found") from None

    def loaded(self, name: str) -> llama_cpp.Model:
        digest = self.model(name)
        if digest not in self._loaded:
            self._loaded[digest] = llama_cpp.Model(self.blob(digest))
        return self._loaded[digest]

    def create(self, body: dict) -> dict:
        ((_, digest),) = body["files"].items()
        if not self.blob(digest).is_file():
            raise Refused(400, f'blob "{digest}" does not exist')
        try:
            read_gguf(self.blob(digest))
        except MicrobudgetError as error:
            raise Refused(400, f"invalid file: {error}") from error
        self.models[full(body["model"])] = digest
        return {"status": "success"}

    def generate(self, body: dict):
        """Lines of an answer, the last one with counts and nanoseconds."""
        options = body["options"]
        common = {"model": body["model"], "created_at": "2025-01-01T00:00:00.0Z"}
        with self.lock:
            model = self.loaded(body["model"])
            for piece in model.stream(body["prompt"], options["num_predict"]):
                yield {**common, "response": piece, "done": False}
            speed = model.speed
        # passes after the prompt's: the last one brought a token, or the end
        cut = speed.new_tokens == options["num_predict"] - 1
        yield {**common, "response": "", "done": True, "done_reason": "stop",
               "prompt_eval_count": speed.prompt_tokens,
               "prompt_eval_duration": ns(speed.prefill_s),
               "eval_count": speed.new_tokens + cut,
               "eval_duration": ns(speed.decode_s)}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ollama: OllamaServer

    def handle_any(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_json = content and not self.path.startswith("/api/blobs")
        body = json.loads(content) if is_json else None
        self.ollama.requests.append((self.command, self.path, body))
        self.ollama.closing.wait(self.ollama.delay)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                self.answer(body, content)
            except Refused as error:
                status, message = error.args
                self.send(json.dumps({"error": message}).encode(), status)

    do_GET = do_HEAD = do_POST = do_DELETE = handle_any

    def answer(self, body: dict | None, content: bytes) -> None:
        server, path = self.ollama, self.path
        if path in server.fail:
            raise Refused(*server.fail[path])
        if path in server.raw:
            return self.send(server.raw[path])
        match self.command, path:
            case "GET", "/api/version":
                self.json({"version": server.version})
            case _, path if path.startswith("/api/blobs/"):
                self.take_blob(path.removeprefix("/api/blobs/"), content)
            case "POST", "/api/create":
                self.json(server.create(body))
            case "POST", "/api/generate":
                server.model(body["model"])
                self.stream(server.generate(body))
            case "DELETE", "/api/delete":
                server.model(body["model"])
                del server.models[full(body["model"])]
                self.send(b"")
            case _:
                raise Refused(404, "404 page not found")

    def take_blob(self, digest: str, content: bytes) -> None:
        blob = self.ollama.blob(digest)
        if self.command == "HEAD":
            return self.send(b"", 200 if blob.is_file() else 404)
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise Refused(400, "digest mismatch")
        blob.write_bytes(content)
        self.send(b"", 201)

    def json(self, answer: dict) -> None:
        self.send(json.dumps(answer).encode())

    def send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def stream(self, lines) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        server = self.ollama
        for line in lines:
            if line.get("done") is False and not line["response"]:
                continue
            self.chunk(json.dumps(line).encode() + b"\n")
            server.closing.wait(server.stall)
            if server.error_line:
                self.chunk(json.dumps({"error": server.error_line}).encode() + b"\n")
                break
            if server.cut == "socket":
                self.close_connection = True
                return
            if server.cut == "done":
                break
        self.chunk(b"")

    def chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        self.wfile.flush()

    def log_message(self, *_) -> None:
        pass


def full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def ns(seconds: float) -> int:
    return int(seconds * 1e9)
