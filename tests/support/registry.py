"""A registry of images on this machine: it serves one image, slowly if told, and refuses others.

Wire format: the OCI distribution specification (``GET /v2/``, manifests, blobs), of an image as podman's
transport "dir:" lays it down.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from containers import IMAGE, ask

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_REFUSALS = {
    "refused": (401, "UNAUTHORIZED", "authentication required"),
    "missing": (404, "MANIFEST_UNKNOWN", "manifest unknown"),
}


class Registry:
    """A running registry with the images stage/engine, stage/refused, stage/missing, and stage/stalls, whose
    answer never comes. `slow`: seconds for which layers are kept back."""

    def __init__(self, image: Path, slow: float) -> None:
        self._image, self._slow = image, slow
        self._asked: list[str] = []
        self._over = threading.Event()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                registry._answer(self)

            def do_GET(self) -> None:
                registry._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no more; what stalls is let go."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, name: str) -> int:
        """How many requests there were for an image of that name."""
        return sum(path.startswith(f"/v2/stage/{name}/") for path in self._asked)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self._asked.append(request.path)
        found = re.fullmatch(r"/v2/stage/(\w+)/(manifests|blobs)/(?:sha256:)?(\w+)", request.path)
        if found is None:
            return _reply(request, 200, "application/json", b"{}")
        name, what, which = found.groups()
        if name == "stalls":
            self._over.wait()
        if name != "engine":
            status, code, text = _REFUSALS.get(name, _REFUSALS["missing"])
            said = {"errors": [{"code": code, "message": text}]}
            return _reply(request, status, "application/json", json.dumps(said).encode())
        if what == "manifests":
            return _reply(request, 200, _MANIFEST, (self._image / "manifest.json").read_bytes())
        self._over.wait(self._slow)
        return _reply(request, 200, "application/octet-stream", (self._image / which).read_bytes())


def _reply(request: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    with contextlib.suppress(ConnectionError):  # whoever asked may have been killed meanwhile
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@contextmanager
def registry(directory: Path, slow: float = 0.0) -> Iterator[Registry]:
    """A registry from which `IMAGE` may be fetched as ADDRESS/stage/engine:1, in a stage of `containers`."""
    ask("push", IMAGE, f"dir:{directory}/image")
    running = Registry(directory / "image", slow)
    try:
        yield running
    finally:
        running.close()
