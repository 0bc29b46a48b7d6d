"""A stand-in for the hub on localhost: as much of its HTTP interface as `datasets` asks for.

With it the hub's way through `datasets.load_dataset` runs for real where there is no network.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATE = "2024-01-30T00:00:00.000Z"
API = "/api/datasets/nyu-mll/glue"


class FakeHub(ThreadingHTTPServer):
    """Serves ``files`` (path in the repository -> bytes) as the repository nyu-mll/glue."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.address = f"http://127.0.0.1:{self.server_port}"

    def entry(self, name: str) -> dict:
        body = self.files[name]
        return {"type": "file", "path": name, "oid": _etag(body), "size": len(body)}

    def folders(self) -> list[str]:
        return sorted({name.rpartition("/")[0] for name in self.files} - {""})

    def describe(self, names: list[str]) -> list[dict]:
        folders = [{"type": "directory", "path": p, "oid": "0" * 40} for p in self.folders()]
        return [f for f in folders if f["path"] in names] + [
            self.entry(name) for name in names if name in self.files
        ]


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        tree = f"{API}/tree/{COMMIT}"
        _, is_file, rest = path.partition("/datasets/nyu-mll/glue/resolve/")
        name = rest.partition("/")[2]
        if path in (API, f"{API}/revision/{COMMIT}", f"{API}/revision/main"):
            files = [{"rfilename": name} for name in self.server.files]
            self._json(
                {"id": "nyu-mll/glue", "sha": COMMIT, "lastModified": DATE, "tags": []}
                | {"private": False, "downloads": 0, "siblings": files}
            )
        elif path == tree or path.startswith(f"{tree}/"):
            under = path.removeprefix(tree).strip("/")
            names = [n for n in (*self.server.folders(), *self.server.files) if n != under]
            self._json(self.server.describe([n for n in names if n.startswith(under)]))
        elif is_file and name in self.server.files:
            body = self.server.files[name]
            self._send(200, body, ETag=f'"{_etag(body)}"', Content_Type="application/octet-stream")
        else:
            self._send(404, b"{}", X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Run a FakeHub in a thread."""
    server = FakeHub(files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
