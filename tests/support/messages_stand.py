"""A server for Anthropic clients that is nothing but the dialect edge in front of scripted chat answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web

from orchestrator.gateway.asked import Asked, Unfit, ask
from orchestrator.gateway.dialects.errors import anthropic_error

REQUEST_ID = "req-7"


@dataclass
class Script:
    """What the engine answers: a plain body with its status, or the events of a stream."""

    body: bytes = b""
    status: int = 200
    events: Sequence[bytes] = ()


@dataclass
class Answered:
    """An answer to a client."""

    status: int
    kind: str
    parts: list[bytes] = field(default_factory=list)


def answered(script: Script, raw_path: str, content: bytes, seen: list[Asked]) -> Answered:
    """Carry one request to the script and its answer back, as the gateway does. `seen` gets what arrived."""
    try:
        asked = ask("POST", raw_path, "application/json", content)
        if asked.unfit is not None:
            raise asked.unfit
    except Unfit as unfit:
        body = anthropic_error(unfit.status, unfit.code, unfit.message, REQUEST_ID, unfit.param)
        return Answered(unfit.status, "application/json", [body])
    seen.append(asked)
    edge = asked.dialect.edge(asked)
    if script.status != 200:
        failed = edge.failed(script.status, script.body, REQUEST_ID)
        return Answered(script.status, "application/json", [failed])
    if not asked.stream:
        return Answered(200, "application/json", [edge.answer(script.body)])
    judge = asked.dialect.judge(asked)
    parts = [edge.feed(judge.feed(event)) for event in script.events]
    parts.append(edge.feed(judge.end()))
    if (failure := judge.failure()) is None:
        parts.append(edge.closing())
    else:
        parts.append(edge.interrupted(request_id=REQUEST_ID, failure=failure, detail="cut", tokens=None))
    return Answered(200, "text/event-stream", parts)


class Stand:
    """Serves `script` on `url`, a port that the system chooses. `seen`: the requests that fitted."""

    def __init__(self) -> None:
        self.script = Script()
        self.seen: list[Asked] = []
        self.url = ""
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen."""
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = answered(self.script, request.raw_path, await request.read(), self.seen)
        out = web.StreamResponse(
            status=answer.status, headers={"Content-Type": answer.kind, "request-id": REQUEST_ID}
        )
        await out.prepare(request)
        for part in answer.parts:
            await out.write(part)
        await out.write_eof()
        return out
