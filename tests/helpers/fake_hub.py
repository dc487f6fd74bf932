"""A hub on 127.0.0.1 for the tests of downloads: enough of the Hugging Face protocol for huggingface_hub itself."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """files: path -> bytes, of the only repository. announced: sizes that the listing states instead of the true ones.

    gated, n_cuts (how often a large file breaks off in its middle), damaged: what goes wrong.
    requests: method, path and Range header of everything asked for.
    """

    files: dict[str, bytes]
    repository: str = "org/model"
    announced: dict[str, int] = field(default_factory=dict)
    gated: bool = False
    n_cuts: int = 0
    damaged: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[tuple[str, str]]:
        """Path and Range of every body that was asked for."""
        return [
            (path.rsplit("/", 1)[-1], sent)
            for method, path, sent in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub at hub.url while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range", "")))
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/" + hub.repository) and "@missing" not in path:
                self.send(200, json.dumps(listing(hub)).encode(), body=body)
            elif path.startswith(f"/{hub.repository}/resolve/"):
                self.file(path.split("/", 5)[5], body=body)
            else:
                self.send(404, b"", body=body, headers={"X-Error-Code": "RepoNotFound"})

        def file(self, name: str, body: bool) -> None:
            if hub.gated:
                self.send(403, b"", body=body, headers={"X-Error-Code": "GatedRepo"})
                return
            content = hub.files[name]
            if name == hub.damaged:
                content = bytes(len(content))
            digest = hashlib.sha256(hub.files[name]).hexdigest()
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if body and hub.n_cuts and is_large(name):
                hub.n_cuts -= 1
                self.send(200, content, body=True, headers=headers, n_sent=len(content) // 2)
                self.close_connection = True
                return
            self.send(206 if start else 200, content[start:], body=body, headers=headers)

        def send(
            self,
            status: int,
            content: bytes,
            *,
            body: bool,
            headers: dict[str, str] | None = None,
            n_sent: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[:n_sent])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listing(hub: FakeHub) -> dict[str, object]:
    """What /api/models says of the repository, with its files' sizes and checksums."""
    siblings = []
    for name, content in hub.files.items():
        size = hub.announced.get(name, len(content))
        row: dict[str, object] = {"rfilename": name, "size": size, "blobId": hashlib.sha1(content).hexdigest()}
        if is_large(name):
            row["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 135}
        siblings.append(row)
    return {
        "_id": "1",
        "id": hub.repository,
        "modelId": hub.repository,
        "sha": COMMIT,
        "private": False,
        "gated": "manual" if hub.gated else False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }
