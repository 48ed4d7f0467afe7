"""The server that is played: requests in, the shape's words out, over the simulated engine's scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import web

from cloud.engines.replay.shape import Counts, Failed, Fault, Made, Piece, Reply, Shape, event
from cloud.engines.simulated_server.core import Core, CoreSettings, EngineDead, Generation
from cloud.engines.simulated_server.metrics import Metrics
from cloud.engines.simulated_server.tokens import TextStream, encode
from cloud.ports import Clock

_DONE: Final = b"data: [DONE]\n\n"
_MAX_BODY: Final = 64 * 2**20
_WIDTH: Final = 8  # numbers in a vector
_LONGEST: Final = 128  # tokens of a text whose client names no length

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Played:
    """One engine. `quiet` is set whenever it holds no request; `crashed` once its model's process ended."""

    def __init__(self, clock: Clock, shape: Shape, *, tokens_per_second: float, faults: bool) -> None:
        self.shape = shape
        self.counts = Counts()
        self.ready = False
        self.draining = False
        self.answering = 0
        self.quiet = asyncio.Event()
        self.crashed = asyncio.Event()
        self.loaded = asyncio.Event()
        self.asked = asyncio.Event()
        setup = shape.setup
        settings = CoreSettings(
            tokens_per_second=tokens_per_second,
            time_to_first_token=0.0,
            max_num_seqs=setup.most_running,
            max_model_len=setup.context,
        )
        self.core = Core(clock, settings, Metrics(setup.name))
        self._clock = clock
        self._faults = faults
        self._serial = 0
        self._held: set[Generation] = set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._around])
        if self._faults:
            app.router.add_post("/faults/{name}", self._fault)
        app.router.add_post("/{path:.*}", self._post)
        app.router.add_get("/{path:.*}", self._get)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        loading = None if self.ready else self.shape.loading()
        if loading is not None:
            return sent(loading)
        key = self.shape.setup.key
        if (
            key
            and self.shape.guarded(request.path)
            and request.headers.get("Authorization") != f"Bearer {key}"
        ):
            return sent(self.shape.unauthorized())
        try:
            return await handler(request)
        except Failed as failed:
            return sent(self.shape.failed(failed, request.path))
        except EngineDead:
            return self._cut_off(request)

    def _cut_off(self, request: web.Request) -> web.StreamResponse:
        """The model's process ended under a plain request."""
        reply = self.shape.cut_off(request.path)
        if reply is None and request.transport is not None:
            request.transport.abort()
        return web.Response() if reply is None else sent(reply)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        counts = self._counted()
        changed: Mapping[str, Reply] = {}
        if self.core.dead:
            changed = self.shape.died()
        elif self.draining:
            changed = self.shape.draining()
        replies = {**self.shape.gets(counts), **changed}
        found = replies.get(request.path)
        return sent(found) if found is not None else web.Response(status=404, text="404 page not found")

    def _counted(self) -> Counts:
        """What the scheduler knows, beside what was counted here."""
        metrics, counts = self.core.metrics, self.counts
        read = {line.split(" ")[0].partition("{")[0]: float(line.split(" ")[1]) for line in _lines(metrics)}
        counts.running = int(read["vllm:num_requests_running"])
        counts.waiting = int(read["vllm:num_requests_waiting"])
        counts.made = counts.steps = int(read["vllm:generation_tokens_total"])
        counts.taken = int(read["vllm:prompt_tokens_total"])
        counts.first_seconds = read["vllm:time_to_first_token_seconds_sum"]
        counts.first_count = int(read["vllm:time_to_first_token_seconds_count"])
        counts.gap_seconds = read["vllm:inter_token_latency_seconds_sum"]
        counts.gap_count = int(read["vllm:inter_token_latency_seconds_count"])
        return counts

    async def _post(self, request: web.Request) -> web.StreamResponse:
        what = self.shape.routes().get(request.path)
        if what is None:
            return web.Response(status=404, text="404 page not found")
        body = _object(await request.read())
        if what == "abort":
            return self._abort()
        self.answering += 1
        self.quiet.clear()
        self.asked.set()
        self.counts.asked += 1
        try:
            await self.loaded.wait()
            if what in ("text", "chat"):
                return await self._generate(request, body, chat=what == "chat")
            return await self._number(body, what)
        finally:
            self.answering -= 1
            if not self.answering:
                self.quiet.set()

    def _abort(self) -> web.Response:
        """A person ends everything: streams and answers end with what there is, and say so."""
        for generation in tuple(self._held):
            self.core.abort(generation)
        return web.Response()

    def _submit(self, prompt: Sequence[int], tokens: int, *, endless: bool) -> Generation:
        setup = self.shape.setup
        most = setup.most_waiting
        if most is not None and self.core.in_flight >= setup.most_running + most:
            raise Failed(Fault.FULL)
        return self.core.submit(prompt, tokens, seed=None, ignore_eos=endless)

    def _made(self, body: Mapping[str, Any], tokens_in: int, *, chat: bool = False) -> Made:
        self._serial += 1
        return Made(
            id=f"{self._serial:032x}",
            asked=str(body.get("model") or self.shape.setup.name),
            created=int(self._clock.now()),
            chat=chat,
            tokens_in=tokens_in,
            tokens_out=0,
        )

    # -- texts -----------------------------------------------------------------------------------------

    async def _generate(
        self, request: web.Request, body: Mapping[str, Any], *, chat: bool
    ) -> web.StreamResponse:
        self._may("generate", body)
        prompt = self._prompt(body, chat=chat)
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or _LONGEST
        most = max(1, min(int(wanted), self.shape.setup.context - len(prompt)))
        generation = self._submit(prompt, most, endless=True)
        self._held.add(generation)
        made = self._made(body, len(prompt), chat=chat)
        try:
            if body.get("stream"):
                return await self._stream(request, body, generation, made)
            text, finish, count = await self._whole(generation)
        finally:
            self._held.discard(generation)
            self.core.drop(generation)
        self._ended(made.tokens_in, count)
        return sent(Reply(200, self.shape.plain(_with(made, count), text, finish)))

    def _prompt(self, body: Mapping[str, Any], *, chat: bool) -> Sequence[int]:
        given = body.get("messages" if chat else "prompt")
        if chat and isinstance(given, list):
            given = "".join(str(message.get("content", "")) for message in given if isinstance(message, dict))
        if not isinstance(given, str):
            raise Failed(Fault.MALFORMED, "prompt: not a text")
        return self._fitting(encode(given))

    def _fitting(self, tokens: Sequence[int]) -> Sequence[int]:
        setup = self.shape.setup
        if len(tokens) < setup.context:
            return tokens
        if not setup.cuts:
            raise Failed(Fault.TOO_LONG, str(len(tokens)))
        return tokens[: setup.context - 1]

    async def _whole(self, generation: Generation) -> tuple[str, str, int]:
        text, count, finish = TextStream(), 0, None
        parts: list[str] = []
        while finish is None:
            tokens, finish = await generation.read()
            count += len(tokens)
            parts += map(text.feed, tokens)
        return "".join(parts), finish, count

    async def _stream(
        self, request: web.Request, body: Mapping[str, Any], generation: Generation, made: Made
    ) -> web.StreamResponse:
        """Headers go with the first token. A stream that breaks ends as the shape says, or just ends."""
        shape, text = self.shape, TextStream()
        tokens, finish = await generation.read()
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        count, first = 0, True
        while True:
            count += len(tokens)
            piece = Piece("".join(map(text.feed, tokens)), finish)
            await self._tell(out, shape.chunks(_with(made, count), piece, first=first))
            first = False
            if finish is not None:
                break
            try:
                tokens, finish = await generation.read()
            except EngineDead:
                rows = shape.broken(Failed(Fault.DIED))
                await self._tell(out, rows, last=bool(rows))
                return out
        self._ended(made.tokens_in, count)
        options = body.get("stream_options")
        asks = isinstance(options, dict) and options.get("include_usage")
        await self._tell(out, shape.used(_with(made, count)) if asks else [], last=True)
        return out

    async def _tell(
        self, out: web.StreamResponse, rows: Sequence[Mapping[str, Any]], *, last: bool = False
    ) -> None:
        events = [event(row, self.shape.space) for row in rows]
        await out.write(b"".join((*events, *((_DONE,) if last else ()))))

    def _ended(self, tokens_in: int, tokens_out: int, inputs: int = 0) -> None:
        self.counts.ended += 1
        self.counts.done += inputs
        self.counts.tokens_in += tokens_in
        self.counts.tokens_out += tokens_out

    # -- numbers ---------------------------------------------------------------------------------------

    async def _number(self, body: Mapping[str, Any], what: str) -> web.StreamResponse:
        self._may("rerank" if what == "rank" else "embed", body)
        native = what == "embed-native"
        texts = self._ranked(body) if what == "rank" else []
        given = texts or self._inputs(body.get("inputs" if native else "input"))
        most = self.shape.setup.most_batched
        if most is not None and len(given) > most:
            raise Failed(Fault.BATCH, str(len(given)))
        inputs = [self._fitting(encode(each) if isinstance(each, str) else each) for each in given]
        tokens = sum(map(len, inputs))
        generation = self._submit([1] * tokens, len(inputs), endless=True)
        try:
            await self._whole(generation)
        finally:
            self.core.drop(generation)
        self._ended(tokens, 0, len(inputs))
        made = self._made(body, tokens)
        if what == "rank":
            query = set(encode(str(body.get("query", ""))))
            scores = [len(query & set(found)) / (1 + len(set(found) | query)) for found in inputs]
            return sent(Reply(200, self.shape.ranks(made, scores, texts, body)))
        vectors = [_vector(found) for found in inputs]
        if native:
            return sent(Reply(200, vectors))
        return sent(Reply(200, self.shape.vectors(made, vectors, str(body.get("encoding_format", "float")))))

    def _inputs(self, given: Any) -> list[str] | list[list[int]]:
        """Texts, or ids of tokens where the engine takes them; a list of them is one input."""
        if self.shape.takes_ids and isinstance(given, list) and given:
            lists = [given] if isinstance(given[0], int) else given
            if all(isinstance(ids, list) and all(isinstance(one, int) for one in ids) for ids in lists):
                return lists
        return self._texts(given)

    def _texts(self, given: Any) -> list[str]:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Failed(Fault.MALFORMED, "input: not texts")
        if not texts:
            raise Failed(Fault.EMPTY)
        return texts

    def _ranked(self, body: Mapping[str, Any]) -> list[str]:
        return self._texts(body.get("texts" if self.shape.kind == "tei" else "documents"))

    def _may(self, task: str, body: Mapping[str, Any]) -> None:
        """Refuse what this model does not do, and a model that is not here where the engine looks at it."""
        setup, named = self.shape.setup, body.get("model")
        if self.shape.kind == "ollama" and named != setup.name:
            raise Failed(Fault.UNKNOWN_MODEL, str(named))
        if task != setup.task:
            raise Failed(Fault.WRONG_TASK, f"the model does not {task}")

    # -- faults ----------------------------------------------------------------------------------------

    async def _fault(self, request: web.Request) -> web.StreamResponse:
        match request.match_info["name"]:
            case "freeze":
                self.core.freeze()
            case "thaw":
                self.core.thaw()
            case "slow":
                self.core.slow(float(_object(await request.read())["factor"]))
            case "crash-engine":
                self.core.kill()
                self.crashed.set()
            case _:
                return web.Response(status=404)
        return web.Response()


def sent(reply: Reply) -> web.Response:
    """An answer with its JSON, or with its bytes as they are."""
    if isinstance(reply.body, bytes):
        return web.Response(status=reply.status, body=reply.body, headers=dict(reply.headers))
    body = orjson.dumps(reply.body)
    return web.Response(
        status=reply.status, body=body, headers={"Content-Type": "application/json", **reply.headers}
    )


def _with(made: Made, tokens_out: int) -> Made:
    return Made(
        id=made.id,
        asked=made.asked,
        created=made.created,
        chat=made.chat,
        tokens_in=made.tokens_in,
        tokens_out=tokens_out,
    )


def _vector(tokens: Sequence[int]) -> list[float]:
    """Numbers that are the same for the same text."""
    total = sum((place + 1) * token for place, token in enumerate(tokens)) + 1
    return [((total * (7 + index)) % 1009 - 504) / 504 for index in range(_WIDTH)]


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Failed(Fault.MALFORMED, str(error)) from None
    if not isinstance(body, dict):
        raise Failed(Fault.MALFORMED, "not an object")
    return body


def _lines(metrics: Metrics) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if line and not line.startswith("#")]
