"""Every test runs without a network: sockets off this machine raise."""

import http.server
import os
import threading
from pathlib import Path

os.environ["MICROBUDGET_BLOCK_NETWORK"] = "1"  # inherited by every process started
os.environ["MICROBUDGET_PROGRESS"] = "0"
# float32 unless a caller of pytest says otherwise; both must pass
os.environ.setdefault("MICROBUDGET_BF16", "0")
os.environ["MICROBUDGET_THREADS"] = "1"  # two on a busy machine are slower than one
for _name in ("MICROBUDGET_PROFILE", "MICROBUDGET_SEED", "MICROBUDGET_LEDGER"):
    os.environ.pop(_name, None)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import microbudget  # noqa: E402, F401 - installs the block

torch.set_num_threads(1)
# The same examples for everybody: whoever sees a test fail can be told why. Other ones:
# pytest --hypothesis-profile search. No deadline: timings are never asserted.
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty MICROBUDGET_HOME, and no data folder."""
    monkeypatch.setenv("MICROBUDGET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MICROBUDGET_DATA", raising=False)
    monkeypatch.delenv("MICROBUDGET_OFFLINE", raising=False)
    return tmp_path / "home"


class FileServer:
    """A web server on loopback with byte ranges, and faults on request.

    Attributes:
        files: path -> content.
        requests: (path, Range header) of everything that was asked for.
        cut_after: if set, the next answers break off after so many bytes.
        fail: status codes for the next requests, one each.
        headers: added to every answer.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: list[int] = []
        self.fail: list[int] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append((self.path, asked))
                content = outer.files.get(self.path)
                if outer.fail or content is None:
                    self.send_error(outer.fail.pop(0) if outer.fail else 404)
                    return
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if start >= len(content) and asked:
                    self.send_error(416)
                    return
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.send_header("Content-Type", "text/html")
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                body = content[start:]
                if outer.cut_after and not self.path.startswith("/simple"):
                    body = body[: outer.cut_after.pop(0)]
                    self.close_connection = True
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        ).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = FileServer()
    yield server
    server.close()
