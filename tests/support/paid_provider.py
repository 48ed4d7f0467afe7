"""A provider that bills: it speaks OpenAI's and Anthropic's forms, counts what it invoices, and misbehaves.

What it bills depends on a request's words alone, so that a test can tell from outside what must be booked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from policies.spend import Usage

Fields = dict[str, Any]
CUT, HANG, NO_USAGE = "please-cut", "please-hang", "please-tell-no-usage"
"""Words in a request that make an ordinary provider break off, fall silent or tell no usage."""


@dataclass
class Seen:
    """A request as it came, and what it costs in tokens."""

    path: str
    headers: dict[str, str]
    fields: Fields
    usage: Usage

    @property
    def messages(self) -> bool:
        return self.path.endswith("/messages")

    @property
    def stream(self) -> bool:
        return bool(self.fields.get("stream"))


def usage_of(fields: Fields) -> Usage:
    """What the request costs: tokens by its words, half of them cached where it says `cached`."""
    words = json.dumps(fields.get("messages", fields.get("input", "")))
    prompt, limit = len(words) // 4 + 1, fields.get("max_tokens") or fields.get("max_completion_tokens")
    cached = prompt // 2 if "cached" in words else 0
    written = 3 if "cached" in words and "max_tokens" in fields else 0
    output = min(limit or 11, 3 + len(words) % 23)
    if "messages" not in fields:
        return Usage(prompt, 0, 0, 0)
    return Usage(fresh=prompt - cached, cached=cached, cache_write=written, output=output)


def openai_usage(usage: Usage) -> Fields:
    """As chat answers tell it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
    }


def anthropic_usage(usage: Usage) -> Fields:
    """As messages tell it."""
    return {
        "input_tokens": usage.fresh,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": usage.cache_write,
        "output_tokens": usage.output,
    }


def plain_body(seen: Seen, told: Any = ...) -> bytes:
    """A whole answer; `told` replaces its usage, None leaves it out."""
    if not seen.messages and "messages" not in seen.fields:
        found: Fields = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "model": "m"}
    elif seen.messages:
        found = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "stop_reason": "end_turn",
        }
        found["content"] = [{"type": "text", "text": "hi"}]
        if seen.fields.get("tools"):
            found["content"] = [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}]
            found["stop_reason"] = "tool_use"
    else:
        message: Fields = {"role": "assistant", "content": "hi"}
        found = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
        if seen.fields.get("tools"):
            message["tool_calls"] = [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ]
        finish = "tool_calls" if seen.fields.get("tools") else "stop"
        found["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    usage = anthropic_usage(seen.usage) if seen.messages else openai_usage(seen.usage)
    if told is ...:
        found["usage"] = usage
    elif told is not None:
        found["usage"] = told
    return json.dumps(found).encode()


def events(seen: Seen, told: Any = ...) -> list[bytes]:
    """The events of a whole stream; `told` replaces the usage at its end, None leaves it out."""
    if seen.messages:
        usage = anthropic_usage(seen.usage)
        last: Fields = {"output_tokens": usage["output_tokens"]} if told is ... else told or {}
        texts = [{"type": "text_delta", "text": f"w{n} "} for n in range(4)]
        start = {"id": "msg_1", "role": "assistant", "model": "m", "usage": {**usage, "output_tokens": 1}}
        found: list[Fields] = [
            {"type": "message_start", "message": start},
            {"type": "ping"},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in texts),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": last},
            {"type": "message_stop"},
        ]
        return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in found]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[Fields] = [{"role": "assistant", "content": ""}, *({"content": f"w{n} "} for n in range(4))]
    chunks: list[Fields] = [
        {**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if told is not None and (seen.fields.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "choices": [], "usage": openai_usage(seen.usage) if told is ... else told})
    return [f"data: {json.dumps(each)}\n\n".encode() for each in chunks] + [b"data: [DONE]\n\n"]


class Line:
    """The provider's end of one request."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        """A whole answer, which leaves the connection open."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def error(self, status: int, message: str = "no", **headers: str) -> None:
        body = {"type": "error", "error": {"type": "some_error", "message": message}}
        await self.answer(status, json.dumps(body).encode(), **headers)

    async def begin(self) -> None:
        """The head of a stream."""
        await self.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def stream(self, blocks: list[bytes]) -> None:
        """A whole stream."""
        await self.begin()
        for block in blocks:
            await self.chunk(block)
        await self.end()

    async def hang(self) -> None:
        """Until the other side leaves."""
        await asyncio.Event().wait()

    def reset(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[["PaidProvider", Seen, Line], Awaitable[None]]


async def answers(provider: PaidProvider, seen: Seen, line: Line) -> None:
    """As an ordinary provider; `words` in the request make it break."""
    words = json.dumps(seen.fields)
    provider.bill(seen)
    told = None if NO_USAGE in words else ...
    if not seen.stream:
        if CUT in words:
            line.reset()
        elif HANG in words:
            await line.hang()
        else:
            await line.answer(200, plain_body(seen, told))
        return
    blocks = events(seen, told)
    if CUT in words or HANG in words:
        await line.begin()
        for block in blocks[:5]:
            await line.chunk(block)
        if HANG in words:
            await line.hang()
        line.reset()
        return
    await line.stream(blocks)


@dataclass
class PaidProvider:
    """One provider on a port of this machine.

    `behaviour` answers each request, `plays` the next ones, in order. `billed` is its ledger, `seen` what
    came; `connections` counts all, `open` those that are, `at_once` and `most_at_once` requests.
    """

    behaviour: Behaviour = answers
    trust: ssl.SSLContext | None = None
    plays: list[Behaviour] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    billed: list[Usage] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    at_once: int = 0
    most_at_once: int = 0
    port: int = 0

    def bill(self, seen: Seen) -> None:
        self.billed.append(seen.usage)

    async def start(self, port: int = 0) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.trust)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: listener and connections."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while True:
                seen = await _read(reader)
                self.seen.append(seen)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    play = self.plays.pop(0) if self.plays else self.behaviour
                    await _while_there(reader, play(self, seen, Line(writer)))
                finally:
                    self.at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()


async def _while_there(reader: asyncio.StreamReader, work: Awaitable[None]) -> None:
    """Do the work as long as the other side is there."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(reader))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ConnectionResetError
        doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task


async def _gone(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - a read would take data away
        await asyncio.sleep(0.005)


async def _read(reader: asyncio.StreamReader) -> Seen:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    fields = json.loads(await reader.readexactly(int(headers["content-length"])))
    return Seen(first.split()[1], headers, fields, usage_of(fields))


@contextlib.asynccontextmanager
async def provider(behaviour: Behaviour = answers, **settings: Any) -> AsyncIterator[PaidProvider]:
    """One that runs."""
    one = PaidProvider(behaviour, **settings)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
