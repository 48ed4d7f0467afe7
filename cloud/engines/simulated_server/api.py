"""The HTTP surface of the simulated engine: vLLM's paths, shapes and errors, and the fault controls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from cloud.engines.simulated_server.answers import ChatAnswer, CompletionAnswer, engine_error, error_body
from cloud.engines.simulated_server.audio import Audio
from cloud.engines.simulated_server.core import Core, EngineDead
from cloud.engines.simulated_server.inference import Inference, Limits, reply, request_id
from cloud.engines.simulated_server.lora import Adapters
from cloud.engines.simulated_server.pooling import Pooling
from cloud.engines.simulated_server.requests import (
    BadRequest,
    Offer,
    parse_chat,
    parse_completion,
    read_object,
)
from cloud.engines.simulated_server.responses import Responses
from cloud.engines.simulated_server.scale_out import ScaleOut, Tokenizing

if TYPE_CHECKING:
    from cloud.ports import Clock

VERSION = "0.32.0"
_MAX_BODY = 64 * 2**20
_GUARDED = ("/v1", "/v2", "/inference")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """What the surface shows and guards. `adapters`: name and path of each that it starts with. The others as
    on the command line.
    """

    model: str
    served_name: str
    adapters: tuple[tuple[str, str], ...] = ()
    adapter_load_time: float = 0.0
    max_cpu_loras: int = 0
    api_key: str = ""
    max_num_queued_reqs: int = 0
    drain_answer: str = "abort"
    auto_tools: bool = False
    reasoning: bool = False
    scale_out: bool = False
    tokenizer_info: bool = False
    responses_store: bool = False
    pooling: bool = False
    faults: bool = False


class Api:
    """Handlers over one core; `inference` runs the requests. `on_crash` runs when the engine died."""

    def __init__(self, clock: Clock, core: Core, settings: ApiSettings) -> None:
        self.on_crash: Callable[[], None] = lambda: None
        self._clock = clock
        self._core = core
        self._settings = settings
        self._created = int(clock.now())
        self._adapters = Adapters(
            clock,
            settings.served_name,
            settings.adapters,
            load_time=settings.adapter_load_time,
            room=settings.max_cpu_loras,
        )
        offer = Offer(
            self._adapters.models, core.settings.max_model_len, settings.auto_tools, settings.reasoning
        )
        limits = Limits(settings.max_num_queued_reqs, settings.drain_answer)
        self.inference = Inference(core, offer, limits, self._adapters)

    def application(self) -> web.Application:
        """The aiohttp application."""
        settings = self._settings
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_post("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        self._adapters.add_routes(app.router)
        Tokenizing(self.inference, info=settings.tokenizer_info).add_routes(app.router)
        Pooling(self._clock, self.inference).add_routes(app.router)
        if not settings.pooling:
            app.router.add_post("/v1/completions", self._completions)
            app.router.add_post("/v1/chat/completions", self._chat)
            ScaleOut(self._clock, self.inference, enabled=settings.scale_out).add_routes(app.router)
            Responses(self._clock, self.inference, stores=settings.responses_store).add_routes(app.router)
            Audio(self.inference).add_routes(app.router)
        if settings.faults:
            app.router.add_post("/faults/crash-engine", self._crash)
            app.router.add_post("/faults/freeze", self._freeze)
            app.router.add_post("/faults/thaw", self._thaw)
            app.router.add_post("/faults/slow", self._slow)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Check the key where vLLM does, and give errors vLLM's shapes."""
        key = self._settings.api_key
        guarded = key and request.path.startswith(_GUARDED)
        if guarded and request.headers.get("Authorization") != f"Bearer {key}":
            return reply({"error": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except BadRequest as error:
            return reply(error_body(str(error), error.kind, error.status, error.param), error.status)
        except EngineDead:
            return reply(engine_error(), 500)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            return reply({"detail": error.reason}, error.status)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self._core.dead else 200)

    async def _version(self, _request: web.Request) -> web.Response:
        return reply({"version": VERSION})

    async def _metrics(self, _request: web.Request) -> web.Response:
        metrics = self._core.metrics
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.content_type})

    async def _models(self, _request: web.Request) -> web.Response:
        settings = self._settings
        listed: list[tuple[str, str, str | None]] = [(settings.served_name, settings.model, None)]
        listed += [(name, path, settings.served_name) for name, path in self._adapters.paths.items()]
        models = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "vllm",
                "root": root,
                "parent": parent,
                "max_model_len": self._core.settings.max_model_len if parent is None else None,
            }
            for name, root, parent in listed
        ]
        return reply({"object": "list", "data": models})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        with self.inference.counted():
            wanted = parse_completion(read_object(await request.read()), self.inference.offer)
            name = request_id(request)
            answer = CompletionAnswer(wanted, name, int(self._clock.now()))
            names = {position: f"cmpl-{name}-{position}" for position in range(len(wanted.prompts))}
            return await self.inference.answer(request, wanted, answer, names)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        with self.inference.counted():
            wanted = parse_chat(read_object(await request.read()), self.inference.offer)
            name = request_id(request)
            answer = ChatAnswer(wanted, name, int(self._clock.now()))
            return await self.inference.answer(request, wanted, answer, {0: f"chatcmpl-{name}"})

    async def _crash(self, _request: web.Request) -> web.Response:
        self._core.kill()
        self.on_crash()
        return reply({"fault": "crash-engine"})

    async def _freeze(self, _request: web.Request) -> web.Response:
        self._core.freeze()
        return reply({"fault": "freeze"})

    async def _thaw(self, _request: web.Request) -> web.Response:
        self._core.thaw()
        return reply({"fault": "thaw"})

    async def _slow(self, request: web.Request) -> web.Response:
        try:
            data = orjson.loads(await request.read())
            factor = float(data["factor"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            factor = 0.0
        if not 0.0 < factor <= 1e6:
            raise BadRequest('expected {"factor": F} with 0 < F <= 1000000', param="factor")
        self._core.slow(factor)
        return reply({"fault": "slow", "factor": factor})
