"""An engine for the dialects that no engine at hand speaks: audio, images, files, batches, stored responses.

It answers in the shapes of OpenAI's API reference and keeps what it is given in memory, so that a request for
a stored thing has to reach the process that made it. Prints its port; ends with its standard input.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from typing import Any

from aiohttp import web

_FRAMES = [b"ID3" + bytes(range(256)) * 40 for _ in range(8)]
_LARGEST = 64 * 2**20  # bytes of an upload


class StandIn:
    """The routes, and what was stored by id."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._responses: dict[str, dict[str, Any]] = {}

    def app(self) -> web.Application:
        """The application with every route."""
        app = web.Application(client_max_size=_LARGEST)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/audio/transcriptions", self._transcribe)
        app.router.add_post("/v1/audio/speech", self._speak)
        app.router.add_post("/v1/images/generations", self._draw)
        app.router.add_post("/v1/images/edits", self._redraw)
        app.router.add_post("/v1/files", self._keep)
        app.router.add_get("/v1/files", self._list)
        app.router.add_get("/v1/files/{id}", self._file)
        app.router.add_delete("/v1/files/{id}", self._delete)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._batch)
        app.router.add_get("/v1/batches/{id}", self._look)
        app.router.add_post("/v1/batches/{id}/cancel", self._cancel)
        app.router.add_post("/v1/responses", self._respond)
        app.router.add_get("/v1/responses/{id}", self._read)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        sound = _sent(form["file"])
        text = f"{len(sound)} bytes heard"
        if form.get("stream") != "true":
            return web.json_response({"text": text})
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        for word in text.split(" "):
            await _tell(out, {"type": "transcript.text.delta", "delta": word + " "})
        await _tell(out, {"type": "transcript.text.done", "text": text})
        return out

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        await request.json()
        out = web.StreamResponse(headers={"Content-Type": "audio/mpeg"})
        out.enable_chunked_encoding()
        await out.prepare(request)
        for frame in _FRAMES:
            await out.write(frame)
        return out

    async def _draw(self, request: web.Request) -> web.Response:
        fields = await request.json()
        return _pictures(fields["prompt"].encode(), fields.get("n") or 1)

    async def _redraw(self, request: web.Request) -> web.Response:
        form = await request.post()
        return _pictures(_sent(form["image"]), int(str(form.get("n", 1))))

    async def _keep(self, request: web.Request) -> web.Response:
        form = await request.post()
        upload = form["file"]
        content = _sent(upload)
        name = upload.filename if isinstance(upload, web.FileField) else "file"
        made = {"id": f"file-{len(self._files)}", "object": "file", "bytes": len(content), "created_at": 1}
        made |= {"filename": name, "purpose": str(form["purpose"]), "status": "processed"}
        self._files[made["id"]] = (made, content)
        return web.json_response(made)

    async def _list(self, _: web.Request) -> web.Response:
        rows = [made for made, _ in self._files.values()]
        return web.json_response({"object": "list", "data": rows, "has_more": False})

    async def _file(self, request: web.Request) -> web.Response:
        found = self._files.get(request.match_info["id"])
        return _missing() if found is None else web.json_response(found[0])

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        gone = self._files.pop(name, None) is not None
        return web.json_response({"id": name, "object": "file", "deleted": True}) if gone else _missing()

    async def _content(self, request: web.Request) -> web.Response:
        found = self._files.get(request.match_info["id"])
        if found is None:
            return _missing()
        return web.Response(body=found[1], content_type="application/octet-stream")

    async def _batch(self, request: web.Request) -> web.Response:
        fields = await request.json()
        if fields["input_file_id"] not in self._files:
            return _missing()
        made = fields | {"id": f"batch-{len(self._batches)}", "object": "batch", "status": "validating"}
        self._batches[made["id"]] = made | {"created_at": 1}
        return web.json_response(self._batches[made["id"]])

    async def _look(self, request: web.Request) -> web.Response:
        found = self._batches.get(request.match_info["id"])
        return _missing() if found is None else web.json_response(found)

    async def _cancel(self, request: web.Request) -> web.Response:
        found = self._batches.get(request.match_info["id"])
        if found is None:
            return _missing()
        found["status"] = "cancelling"
        return web.json_response(found)

    async def _respond(self, request: web.Request) -> web.Response:
        fields = await request.json()
        before = fields.get("previous_response_id")
        if before is not None and before not in self._responses:
            return _missing()
        text = f"{self._responses[before]['text']} {fields['input']}" if before else fields["input"]
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        made = {"id": f"resp_{len(self._responses)}", "object": "response", "created_at": 1, "model": "any"}
        made |= {"status": "completed", "output": [item], "parallel_tool_calls": True, "tools": []}
        self._responses[made["id"]] = {"text": text, "response": made}
        return web.json_response(made)

    async def _read(self, request: web.Request) -> web.Response:
        found = self._responses.get(request.match_info["id"])
        return _missing() if found is None else web.json_response(found["response"])


def _sent(field: Any) -> bytes:
    return bytes(field.file.read()) if isinstance(field, web.FileField) else str(field).encode()


def _pictures(seed: bytes, count: int) -> web.Response:
    rows = [hashlib.sha256(seed + bytes([number])).digest() * 3000 for number in range(count)]
    data = [{"b64_json": base64.b64encode(row).decode()} for row in rows]
    return web.json_response({"created": 1, "data": data})


def _missing() -> web.Response:
    error = {"message": "no such thing here", "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=404)


async def _tell(out: web.StreamResponse, event: dict[str, Any]) -> None:
    await out.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def main() -> None:
    """Serve until the standard input ends."""
    runner = web.AppRunner(StandIn().app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
