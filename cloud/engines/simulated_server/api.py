"""The HTTP surface of the simulated engine: vLLM's paths, shapes and errors, and the fault controls."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from cloud.engines.simulated_server.answers import (
    DONE,
    QUEUE_FULL,
    SHUT_DOWN,
    Answer,
    engine_error,
    error_body,
    event,
)
from cloud.engines.simulated_server.core import Core, EngineDead, Generation
from cloud.engines.simulated_server.requests import BadRequest, InferenceRequest, parse
from cloud.engines.simulated_server.tokens import TextStream
from cloud.ports import Clock

VERSION = "0.32.0"
_MAX_BODY = 64 * 2**20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """What the surface shows and guards. `max_num_queued_reqs` 0 means no limit."""

    model: str
    served_name: str
    api_key: str = ""
    max_num_queued_reqs: int = 0
    drain_answer: str = "abort"
    faults: bool = False


class Api:
    """Handlers over one core. `answering` counts inference requests that are not fully answered.

    `draining`: new requests get the answers of an engine that shuts down. `on_quiet` runs whenever the last
    request in flight is answered; `on_crash` when the engine died.
    """

    def __init__(self, clock: Clock, core: Core, settings: ApiSettings) -> None:
        self.answering = 0
        self.draining = False
        self.on_quiet: Callable[[], None] = lambda: None
        self.on_crash: Callable[[], None] = lambda: None
        self._clock = clock
        self._core = core
        self._settings = settings
        self._created = int(clock.now())

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_post("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self._settings.faults:
            app.router.add_post("/faults/crash-engine", self._crash)
            app.router.add_post("/faults/freeze", self._freeze)
            app.router.add_post("/faults/thaw", self._thaw)
            app.router.add_post("/faults/slow", self._slow)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Check the key where vLLM does, and give errors vLLM's shapes."""
        key = self._settings.api_key
        if key and request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
            return _json({"error": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except BadRequest as error:
            return _json(error_body(str(error), error.kind, error.status, error.param), error.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return _json({"detail": error.reason}, error.status)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self._core.dead else 200)

    async def _version(self, _request: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def _metrics(self, _request: web.Request) -> web.Response:
        metrics = self._core.metrics
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.content_type})

    async def _models(self, _request: web.Request) -> web.Response:
        settings = self._settings
        model = {
            "id": settings.served_name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": settings.model,
            "parent": None,
            "max_model_len": self._core.settings.max_model_len,
        }
        return _json({"object": "list", "data": [model]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=True)

    async def _infer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        self.answering += 1
        try:
            return await self._answer(request, chat)
        finally:
            self.answering -= 1
            if self.answering == 0:
                self.on_quiet()

    async def _answer(self, request: web.Request, chat: bool) -> web.StreamResponse:
        core, settings = self._core, self._settings
        name = settings.served_name
        inference = parse(
            await request.read(), chat=chat, model_name=name, max_model_len=core.settings.max_model_len
        )
        if self.draining and _answers_error(settings.drain_answer, inference):
            refused = _json(error_body(SHUT_DOWN, "InternalServerError", 500), 500)
            refused.force_close()
            return refused
        if settings.max_num_queued_reqs and core.in_flight >= settings.max_num_queued_reqs:
            core.metrics.rejected()
            return _json(error_body(QUEUE_FULL, "Service Unavailable", 503), 503)
        request_id = request.headers.get("X-Request-Id") or os.urandom(8).hex()
        answer = Answer(inference, request_id, name, int(self._clock.now()))
        try:
            generation = self._enter(inference)
        except EngineDead:
            return _json(engine_error(), 500)
        try:
            if inference.stream:
                return await self._stream(request, inference, answer, generation)
            return await self._plain(inference, answer, generation)
        finally:
            core.drop(generation)

    def _enter(self, inference: InferenceRequest) -> Generation:
        """Hand a request to the engine. Raises EngineDead."""
        if self.draining:
            return self._core.turn_away(inference.prompt)
        return self._core.submit(
            inference.prompt, inference.max_tokens, seed=inference.seed, ignore_eos=inference.ignore_eos
        )

    async def _stream(
        self, request: web.Request, inference: InferenceRequest, answer: Answer, generation: Generation
    ) -> web.StreamResponse:
        """Send tokens as they come. The head goes out with the first token, not before: so does vLLM's."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        text = TextStream(inference.stops)
        head = answer.first_events()
        finish: str | None = None
        try:
            while finish is None:
                tokens, finish = await generation.read()
                if not response.prepared:
                    await response.prepare(request)
                new, used = _decode(text, tokens)
                if text.matched is not None:
                    finish = "stop"
                elif finish is not None:
                    new += text.finish()
                chunk = head + answer.chunk(new, tokens[:used], finish, text.matched)
                head = b""
                await response.write(chunk + answer.last_events() if finish is not None else chunk)
        except EngineDead:
            if not response.prepared:
                await response.prepare(request)
            await response.write(event(engine_error()) + DONE)
        await response.write_eof()
        return response

    async def _plain(
        self, inference: InferenceRequest, answer: Answer, generation: Generation
    ) -> web.StreamResponse:
        text = TextStream(inference.stops)
        parts: list[str] = []
        ids: list[int] = []
        finish: str | None = None
        while finish is None:
            try:
                tokens, finish = await generation.read()
            except EngineDead:
                return _json(engine_error(), 500)
            new, used = _decode(text, tokens)
            parts.append(new)
            ids += tokens[:used]
            if text.matched is not None:
                finish = "stop"
        parts.append(text.finish())
        return web.Response(
            body=answer.body("".join(parts), ids, finish, text.matched), content_type="application/json"
        )

    async def _crash(self, _request: web.Request) -> web.Response:
        self._core.kill()
        self.on_crash()
        return _json({"fault": "crash-engine"})

    async def _freeze(self, _request: web.Request) -> web.Response:
        self._core.freeze()
        return _json({"fault": "freeze"})

    async def _thaw(self, _request: web.Request) -> web.Response:
        self._core.thaw()
        return _json({"fault": "thaw"})

    async def _slow(self, request: web.Request) -> web.Response:
        try:
            data = orjson.loads(await request.read())
            factor = float(data["factor"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            factor = 0.0
        if not 0.0 < factor <= 1e6:
            raise BadRequest('expected {"factor": F} with 0 < F <= 1000000', param="factor")
        self._core.slow(factor)
        return _json({"fault": "slow", "factor": factor})


def _answers_error(drain_answer: str, inference: InferenceRequest) -> bool:
    """True when a draining engine answers this request with an error, not with an aborted text.

    vLLM 0.32 stops its tokenizer first: what needs it fails, token ids get through to an engine that aborts.
    """
    return drain_answer == "error" or (drain_answer == "by-prompt" and not inference.by_ids)


def _decode(text: TextStream, tokens: Any) -> tuple[str, int]:
    """Feed tokens until they end or a stop string is complete; return the text and how many were used."""
    parts: list[str] = []
    for used, token in enumerate(tokens, start=1):
        parts.append(text.feed(token))
        if text.matched is not None:
            return "".join(parts), used
    return "".join(parts), len(tokens)


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")
