"""How a request for text is answered: queue limit, drain, engine, stream or whole answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from cloud.engines.simulated_server.answers import (
    QUEUE_FULL,
    SHUT_DOWN,
    Answer,
    engine_error,
    error_body,
)
from cloud.engines.simulated_server.core import Core, EngineDead, Generation
from cloud.engines.simulated_server.lora import Adapters
from cloud.engines.simulated_server.outputs import Output, Piece, joined
from cloud.engines.simulated_server.requests import InferenceRequest, Offer
from cloud.engines.simulated_server.tokens import TextStream

_ID_HEADER = "X-Request-Id"


def reply(data: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")


def request_id(request: web.Request, given: object = None) -> str:
    """The id of a request: the client's header, else what the body gives, else a random one."""
    return request.headers.get(_ID_HEADER) or (given if isinstance(given, str) and given else new_id())


def new_id() -> str:
    """A random id of vLLM's form."""
    return os.urandom(8).hex()


@dataclass(frozen=True, slots=True)
class Limits:
    """When requests are turned away. `most_in_flight` 0: no limit; `drain_answer`: see the command line."""

    most_in_flight: int = 0
    drain_answer: str = "abort"


class Inference:
    """Runs requests on one core. `answering` counts requests that are not fully answered.

    `draining`: new requests get the answers of an engine that shuts down. `on_quiet` runs whenever the last
    request in flight is answered.
    """

    def __init__(self, core: Core, offer: Offer, limits: Limits, adapters: Adapters) -> None:
        self.core = core
        self.adapters = adapters
        self.offer = offer
        self.answering = 0
        self.draining = False
        self.on_quiet: Callable[[], None] = lambda: None
        self._limits = limits
        self._by_id: dict[str, list[Generation]] = {}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What runs inside is a request in flight."""
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1
            if self.answering == 0:
                self.on_quiet()

    def refusal(self, *, by_ids: bool) -> web.Response | None:
        """The answer of an engine that takes nothing now, if it is one.

        vLLM 0.32 stops its tokenizer first when it drains: what needs it fails, token ids get through to an
        engine that aborts.
        """
        answer = self._limits.drain_answer
        if self.draining and (answer == "error" or (answer == "by-prompt" and not by_ids)):
            refused = reply(error_body(SHUT_DOWN, "InternalServerError", 500), 500)
            refused.force_close()
            return refused
        if self.core.dead:
            return reply(engine_error(), 500)
        most = self._limits.most_in_flight
        if most and self.core.in_flight >= most:
            self.core.metrics.rejected()
            return reply(error_body(QUEUE_FULL, "Service Unavailable", 503), 503)
        return None

    async def answer(
        self, http: web.Request, request: InferenceRequest, answer: Answer, names: Mapping[int, str]
    ) -> web.StreamResponse:
        """Run a request and answer it. `names`: the id by which each prompt's outputs can be aborted."""
        if refused := self.refusal(by_ids=request.by_ids):
            return refused
        await self.adapters.use(request.model)
        run = Run(self, request)
        for position, generations in enumerate(run.by_prompt()):
            self._by_id[names[position]] = generations
        try:
            return await (_stream(http, run, answer) if request.stream else _plain(run, answer))
        finally:
            run.drop()
            for name in names.values():
                self._by_id.pop(name, None)

    async def tokens(self, prompt: Sequence[int], count: int = 1) -> list[int]:
        """Let the engine make this many tokens, for routes that answer with something else than text.

        Raises EngineDead, also while it drains.
        """
        if self.draining:
            raise EngineDead
        generation = self.core.submit(prompt, count, seed=None, ignore_eos=True)
        made: list[int] = []
        try:
            while generation.finish is None or len(made) < count:
                made += (await generation.read())[0]
        finally:
            self.core.drop(generation)
        return made

    def abort(self, names: list[Any]) -> None:
        """End the requests of these ids; unknown ones are ignored."""
        for name in names:
            for generation in self._by_id.get(name, ()):
                self.core.abort(generation)


class Run:
    """All outputs of one request inside the engine."""

    def __init__(self, inference: Inference, request: InferenceRequest) -> None:
        self._core = inference.core
        self._wake = asyncio.Event()
        self._request = request
        variant = inference.adapters.variant(request.model)
        grammar = request.grammar
        self._open: list[tuple[Output, Generation]] = []
        for index in range(request.n * len(request.prompts)):
            prompt = request.prompts[index // request.n]
            if inference.draining:
                generation = self._core.turn_away(prompt, self._wake)
            else:
                generation = self._core.submit(
                    prompt,
                    request.max_tokens,
                    seed=request.seed,
                    ignore_eos=request.ignore_eos,
                    variant=variant + index % request.n,
                    grammar=grammar,
                    wake=self._wake,
                )
            text = TextStream(request.stops, included=request.stops_included)
            output = Output(index, text, request.parsing, lambda: f"chatcmpl-tool-{new_id()}")
            self._open.append((output, generation))

    def by_prompt(self) -> list[list[Generation]]:
        """The generations of each prompt."""
        n = self._request.n
        generations = [generation for _, generation in self._open]
        return [generations[at : at + n] for at in range(0, len(generations), n)]

    async def next(self) -> list[Piece]:
        """What is new, at least one piece; nothing once all outputs have ended. Raises EngineDead."""
        pieces: list[Piece] = []
        while self._open and not pieces:
            await self._wake.wait()
            self._wake.clear()
            for output, generation in self._open:
                tokens, finish = generation.take()
                if tokens or finish is not None:
                    pieces.append(output.feed(tokens, finish))
        for piece in pieces:
            if piece.finish is not None:
                self._end(piece.index)
        return pieces

    def _end(self, index: int) -> None:
        """An output has ended, perhaps before the engine ended it."""
        for output, generation in self._open:
            if output.index == index:
                self._core.drop(generation)
        self._open = [one for one in self._open if one[0].index != index]

    def drop(self) -> None:
        """Free what is still running: the client went away."""
        for _, generation in self._open:
            self._core.drop(generation)


async def _stream(http: web.Request, run: Run, answer: Answer) -> web.StreamResponse:
    """Send tokens as they come. The head goes out with the first token, not before: so does vLLM's."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    head = answer.begin()
    try:
        while pieces := await run.next():
            if not response.prepared:
                await response.prepare(http)
            if chunk := head + b"".join(answer.chunk(piece) for piece in pieces):
                await response.write(chunk)
            head = b""
        await response.write(answer.end())
    except EngineDead:
        if not response.prepared:
            await response.prepare(http)
        await response.write(answer.failed())
    await response.write_eof()
    return response


async def _plain(run: Run, answer: Answer) -> web.StreamResponse:
    outputs: dict[int, list[Piece]] = {}
    try:
        while pieces := await run.next():
            for piece in pieces:
                outputs.setdefault(piece.index, []).append(piece)
    except EngineDead:
        return reply(engine_error(), 500)
    whole = [joined(outputs[index]) for index in sorted(outputs)]
    return web.Response(body=answer.body(whole), content_type="application/json")
