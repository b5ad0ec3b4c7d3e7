"""A Hugging Face Hub on loopback, big enough for searches, `model_info`, dry runs and small files, whole or streamed.

The client reads HF_ENDPOINT when it is imported, so what is tested runs in a process of its own: `run_python`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """What the server answers with; change it before a client asks."""

    files: dict[str, bytes]
    """Of the one model, `org/tiny`, and the one data set, `org/data`."""
    found: object = ()
    """What a search for models finds, as JSON."""
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of every request so far."""
    pushed: dict[str, bytes] = field(default_factory=dict)
    """Files that a commit put into a repository, by name."""
    created: list[dict[str, object]] = field(default_factory=list)
    """What was asked for of each repository made."""
    hinder: Callable[[BaseHTTPRequestHandler, str, bytes], bool] = lambda handler, path, content: False
    """Asked before an answer is sent; true when it has done something else instead."""

    def downloaded(self) -> set[str]:
        """Names of the files whose content was asked for."""
        prefix = "GET /org/tiny/resolve/"
        return {line.rsplit("/", 1)[-1] for line in self.requests if line.startswith(prefix)}


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Serve `files` as the model `org/tiny`, and one repository for every kind of refusal."""
    hub = FakeHub(files)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run_python(code: str, endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter whose Hub is at `endpoint` and whose cache is under `home`."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "AWQ_TUI_HOME": str(home / "awq")}
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        env.pop(name, None)
    env |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )


REFUSALS = {
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}),
    "unknown": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {}),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "forbidden": (403, {"X-Error-Message": "no"}),
    "limited": (429, {}),
    "login": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "down": (500, {}),
}
"""By the organisation's name: status and headers of the answer to anything under it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeHub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.state.requests.append(f"{self.command} {path}")
        organisation = path.removeprefix("/api/models/").removeprefix("/api/datasets/").strip("/").split("/")[0]
        if organisation in REFUSALS:
            status, headers = REFUSALS[organisation]
            self._send(b'{"error": "refused"}', status, headers)
        elif organisation == "broken":
            self._send(b"<html>Please log in to the hotel network</html>")
        elif path == "/api/models":
            self._send(json.dumps(self.state.found).encode())
        elif path == f"/api/datasets/org/data/tree/{COMMIT}/data":
            self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
        elif path.startswith(("/api/models/org/tiny/tree/", "/api/datasets/org/data/tree/")):
            self._send(json.dumps([self._entry(name) for name in self.state.files]).encode())
        elif path.startswith("/api/models/org/tiny"):
            self._send(json.dumps({"id": "org/tiny", "sha": COMMIT, "private": False, "siblings": []}).encode())
        elif path.startswith("/api/datasets/org/data"):
            self._send(json.dumps({"id": "org/data", "sha": COMMIT, "private": False, "siblings": []}).encode())
        elif path.rsplit("/", 1)[-1] in self.state.files:
            name = path.rsplit("/", 1)[-1]
            self._send_file(name, self.state.files[name])
        else:
            known = path.startswith("/datasets/org/data/")
            self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    def do_POST(self) -> None:
        path = self.path.split("?")[0]
        self.state.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            self.state.created.append(json.loads(body))
            self._send(json.dumps({"url": f"{self.state.url}/org/new", "name": "org/new"}).encode())
        elif path == "/api/validate-yaml":
            self._send(b'{"errors": [], "warnings": []}')
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(json.dumps({"files": files}).encode())
        elif "/commit/" in path and not path.startswith("/api/models/forbidden/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.state.pushed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.state.url}/org/new/commit/{COMMIT}", "commitOid": COMMIT}
            self._send(json.dumps(answer).encode())
        else:
            self._send(b'{"error": "refused"}', 403, {"X-Error-Message": "no"})

    def _entry(self, name: str) -> dict[str, object]:
        content = self.state.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}

    def _send_file(self, name: str, content: bytes) -> None:
        """`content` with the hash of what it should be."""
        self._send(
            content,
            200,
            {"ETag": f'"{_git_hash(self.state.files[name])}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"},
        )

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.state.hinder(self, self.path.split("?")[0], body):
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"{}", **headers: str) -> bool:
    """For `FakeHub.hinder`: send this instead."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    return True


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
