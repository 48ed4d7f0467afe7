"""Upstream servers that misbehave in the ways real engines do."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from policies.model import TargetSpec


@dataclass
class Seen:
    """One request as an upstream saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Conversation:
    """One request on one connection, for a behaviour to answer."""

    upstream: Upstream
    request: Seen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, status: str, body: bytes, kind: str = "application/json", more: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await self.send(head.encode() + body)

    async def json(self, value: Any, status: str = "200 OK") -> None:
        await self.reply(status, json.dumps(value).encode())

    async def start_stream(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.send(head.encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, value: Any) -> None:
        await self.chunk(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")

    async def text(self, text: str, finish: str | None = None, index: int = 0) -> None:
        await self.event({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})

    async def role(self) -> None:
        delta = {"role": "assistant", "content": ""}
        await self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    async def done(self) -> None:
        await self.chunk(b"data: [DONE]\n\n")

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """End the connection with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until_client_leaves(self) -> None:
        await self.reader.read()
        self.upstream.left += 1


Behaviour = Callable[[Conversation], Awaitable[None]]


class Upstream:
    """An engine that answers as its `behaviour` says; checks get `health` at once. A `frozen` one is silent.

    What the gateway asks of its own accord bears no request id; `asked` answers it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.behaviour: Behaviour = Behave.answer
        self.asked: Behaviour = Behave.know_nothing
        self.health = "200 OK"
        self.frozen = False
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.left = 0
        self.go_on = asyncio.Event()
        self.questions = 0  # of the gateway, about what it can do
        self.mute = 0  # so many of them end their connection
        self.tells = asyncio.Event()  # it answers the others, with 404
        self.tells.set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """New connections are refused; open ones go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def stop(self) -> None:
        await self.stop_listening()
        for writer in self._open.values():
            writer.transport.abort()
        for task in self._open:
            task.cancel()
        while self._open:
            await asyncio.wait(self._open)

    def spec(self, **fields: Any) -> TargetSpec:
        return TargetSpec(id=self.name, address=self.address, **fields)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = writer
        try:
            while True:
                request = await self._read(reader)
                if self.frozen:
                    await reader.read()
                    return
                talk = Conversation(self, request, reader, writer)
                if request.path == "/health":
                    await talk.reply(self.health, b"")
                    continue
                if "x-request-id" not in request.headers:
                    self.questions += 1
                    if self.questions <= self.mute:
                        return
                    await self.tells.wait()
                    await self.asked(talk)
                    continue
                self.seen.append(request)
                self.in_flight += 1
                try:
                    await self.behaviour(talk)
                finally:
                    self.in_flight -= 1
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            del self._open[task]
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Seen:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {}
        for line in rest:
            name, _, value = line.partition(": ")
            if name:
                headers[name.lower()] = value
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Seen(method, path, headers, body)


class Behave:
    """The ways an engine can answer; measured on vLLM 0.32 where it is about engines."""

    @staticmethod
    async def answer(talk: Conversation) -> None:
        """A plain answer, or a stream of three tokens when asked for one."""
        if b'"stream": true' in talk.request.body or b'"stream":true' in talk.request.body:
            await Behave.tokens(3)(talk)
        else:
            choice = {
                "index": 0,
                "message": {"content": f"from {talk.upstream.name}"},
                "finish_reason": "stop",
            }
            await talk.json({"object": "chat.completion", "choices": [choice]})

    @staticmethod
    def tokens(count: int, gap: float = 0.0) -> Behaviour:
        async def behave(talk: Conversation) -> None:
            await talk.start_stream()
            await talk.role()
            for number in range(count):
                await talk.text(f"t{number} ")
                if gap:
                    await asyncio.sleep(gap)
            await talk.text("", "stop")
            await talk.done()
            await talk.end_stream()

        return behave

    @staticmethod
    def status(status: str, message: str = "no", kind: str = "InternalServerError") -> Behaviour:
        async def behave(talk: Conversation) -> None:
            code = int(status.split()[0])
            error = {"message": message, "type": kind, "param": None, "code": code}
            await talk.json({"error": error}, status)

        return behave

    @staticmethod
    async def know_nothing(talk: Conversation) -> None:
        await talk.reply("404 Not Found", b"")

    @staticmethod
    async def reset_at_once(talk: Conversation) -> None:
        talk.reset()

    @staticmethod
    async def close_at_once(talk: Conversation) -> None:
        talk.writer.close()

    @staticmethod
    async def reset_in_plain_answer(talk: Conversation) -> None:
        await talk.send(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"a":'
        )
        talk.reset()

    @staticmethod
    async def garbage(talk: Conversation) -> None:
        await talk.send(b"\x00\x01 this is not HTTP\r\n\r\n")
        talk.writer.close()

    @staticmethod
    async def abort_plain(talk: Conversation) -> None:
        choice = {"index": 0, "message": {"content": ""}, "finish_reason": "abort"}
        await talk.json({"object": "chat.completion", "choices": [choice]})

    @staticmethod
    async def abort_stream(talk: Conversation) -> None:
        await talk.start_stream()
        await talk.role()
        await talk.text("", "abort")
        await talk.done()
        await talk.end_stream()

    @staticmethod
    async def error_first(talk: Conversation) -> None:
        await talk.start_stream()
        await talk.event({"error": {"message": "EngineCore encountered an issue", "code": 500}})
        await talk.done()
        await talk.end_stream()

    @staticmethod
    async def refusal_first(talk: Conversation) -> None:
        await talk.start_stream()
        await talk.event({"error": {"message": "bad schema", "type": "BadRequestError", "code": 400}})
        await talk.done()
        await talk.end_stream()

    @staticmethod
    async def silent(talk: Conversation) -> None:
        await talk.until_client_leaves()

    @staticmethod
    async def silent_after_role(talk: Conversation) -> None:
        await talk.start_stream()
        await talk.role()
        await talk.until_client_leaves()

    @staticmethod
    async def done_at_once(talk: Conversation) -> None:
        await talk.start_stream()
        await talk.done()
        await talk.end_stream()

    @staticmethod
    def after_tokens(count: int, then: Behaviour) -> Behaviour:
        async def behave(talk: Conversation) -> None:
            await talk.start_stream()
            await talk.role()
            for number in range(count):
                await talk.text(f"t{number} ")
            if count:
                await talk.upstream.go_on.wait()  # until the client has a part: before that it is retried
            await then(talk)

        return behave

    @staticmethod
    async def then_reset(talk: Conversation) -> None:
        talk.reset()

    @staticmethod
    async def then_half_event(talk: Conversation) -> None:
        await talk.chunk(b'data: {"choices":[{"index":0,"delta":{"cont')
        await Behave.then_reset(talk)

    @staticmethod
    async def then_bad_chunk(talk: Conversation) -> None:
        await talk.send(b"ZZ\r\nno size of a chunk\r\n")
        await talk.until_client_leaves()

    @staticmethod
    async def then_error(talk: Conversation) -> None:
        await talk.event({"error": {"message": "EngineCore encountered an issue", "code": 500}})
        await talk.done()
        await talk.end_stream()

    @staticmethod
    async def then_abort(talk: Conversation) -> None:
        await talk.text("", "abort")
        await talk.done()
        await talk.end_stream()

    @staticmethod
    async def then_done_only(talk: Conversation) -> None:
        await talk.done()
        await talk.end_stream()

    @staticmethod
    async def then_end(talk: Conversation) -> None:
        await talk.end_stream()

    @staticmethod
    async def then_finish_and_reset(talk: Conversation) -> None:
        await talk.text("", "stop")
        await Behave.then_reset(talk)
