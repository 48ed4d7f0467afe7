"""Audio routes of the simulated engine: a recording in and text out, and a text in and sound out.

vLLM 0.32 serves transcriptions and translations. Speech is vLLM-Omni's: bytes whose length is not known when
they begin.
"""

from __future__ import annotations

from typing import Any

from aiohttp import BodyPartReader, web

from cloud.engines.simulated_server.inference import Inference, reply
from cloud.engines.simulated_server.requests import BadRequest, model_of, read_object
from cloud.engines.simulated_server.tokens import ALL_SPECIAL, decode

_BYTES_PER_SECOND = 32_000  # of sound: 16 bits, 16 kHz, one channel
_WORDS = 12  # tokens of a transcription
_HEARD = 1_000  # bytes at the end of a recording that the text depends on
_BYTES_PER_LETTER = 1_600
_SILENCE = b"\0" * 8_000


class Audio:
    """/v1/audio/transcriptions, /v1/audio/translations and /v1/audio/speech."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """The paths, all of them POST."""
        router.add_post("/v1/audio/transcriptions", self._transcribe)
        router.add_post("/v1/audio/translations", self._transcribe)
        router.add_post("/v1/audio/speech", self._speak)

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        with self._inference.counted():
            fields, sound = await _form(request)
            model_of(fields, self._inference.offer)
            if refused := self._inference.refusal(by_ids=False):
                return refused
            text = decode(await self._inference.tokens(sound[-_HEARD:], _WORDS), ALL_SPECIAL).strip()
            if fields.get("response_format") == "text":
                return web.Response(text=text)
            seconds = max(1, len(sound) // _BYTES_PER_SECOND)
            return reply({"text": text, "usage": {"type": "duration", "seconds": seconds}})

    async def _speak(self, request: web.Request) -> web.StreamResponse:
        with self._inference.counted():
            data = read_object(await request.read())
            model_of(data, self._inference.offer)
            if not isinstance(data.get("input"), str) or not data["input"]:
                raise BadRequest("input: field required", param="body.input", kind="Bad Request")
            if refused := self._inference.refusal(by_ids=False):
                return refused
            response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            for _ in range(0, len(data["input"]) * _BYTES_PER_LETTER, len(_SILENCE)):
                await self._inference.tokens(())
                await response.write(_SILENCE)
            await response.write_eof()
            return response


async def _form(request: web.Request) -> tuple[dict[str, Any], bytes]:
    """The fields of a multipart form and the file in it. Raises BadRequest."""
    if not request.content_type.startswith("multipart/"):
        raise BadRequest("file: field required", param="body.file", kind="Bad Request")
    fields: dict[str, Any] = {}
    sound: bytes | None = None
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise BadRequest("the form must not hold another form")
            if part.name == "file":
                sound = bytes(await part.read())
            elif part.name:
                fields[part.name] = await part.text()
    except ValueError as error:
        raise BadRequest(f"There was an error parsing the body: {error}") from None
    if not sound:
        raise BadRequest("file: field required", param="body.file", kind="Bad Request")
    return fields, sound
