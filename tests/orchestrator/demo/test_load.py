"""What the demo's load counts: an answer that is not whole must never count as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from aiohttp import web

from cloud.clock import SystemClock
from orchestrator.demo.load import ClientStream, Load, LoadReport, total


def chunk(text: str = "", finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"choices": [choice], **more}) + b"\n"


USAGE = b"data: " + orjson.dumps({"choices": [], "usage": {"completion_tokens": 5}}) + b"\n"
DONE = b"data: [DONE]\n"


def test_a_seam_is_the_wait_between_the_events_around_it() -> None:
    stream = ClientStream(0.0)
    for at, line in ((1.0, chunk("a")), (1.1, b": continued\n"), (1.6, b"\n"), (1.75, chunk("b", "length"))):
        stream.line(line, at)
    assert (stream.continued, stream.began, stream.finish) == (True, True, "length")
    assert stream.seams == [pytest.approx(0.75)]


def test_a_stream_may_change_nodes_more_than_once() -> None:
    stream = ClientStream(0.0)
    said = ((1.0, chunk("a")), (1.5, b": continued inexact\n"), (2.0, chunk("b")), (2.5, b": continued\n"))
    for at, line in (*said, (4.0, chunk("c", "stop")), (4.1, USAGE), (4.2, DONE)):
        stream.line(line, at)
    assert stream.seams == [pytest.approx(1.0), pytest.approx(2.0)]
    assert stream.counted == 5


async def report_of(
    answer: Callable[[dict[str, Any]], list[bytes] | bytes], backend: str = "", **options: Any
) -> LoadReport:
    """What the load counts when every request is answered so, by this backend; a list is a stream."""
    headers = {"X-Orchestrator-Backend": backend} if backend else {}

    async def handle(request: web.Request) -> web.StreamResponse:
        told = answer(orjson.loads(await request.read()))
        if isinstance(told, bytes):
            return web.Response(body=told, headers=headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for block in told:
            await response.write(block)
        return response

    stop, answered = asyncio.Event(), 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal answered
        answered += 1
        if answered == 20:
            stop.set()
        return await handle(request)

    app = web.Application()
    app.router.add_post("/{path:.*}", counted)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    load = Load(
        url=f"http://127.0.0.1:{runner.addresses[0][1]}",
        model="m",
        rate=1000.0,
        tokens=(5, 5),
        seed=1,
        clock=SystemClock(),
        **options,
    )
    try:
        await load.run(stop)
    finally:
        await runner.cleanup()
    return load.report


def plain(tokens: int, finish: str | None = "length") -> bytes:
    return orjson.dumps({"choices": [{"finish_reason": finish}], "usage": {"completion_tokens": tokens}})


Answer = Callable[[dict[str, Any]], "list[bytes] | bytes"]


def answers(stream: list[bytes], whole: bytes = b"") -> Answer:
    return lambda body: stream if body["stream"] else whole or plain(5)


@pytest.mark.parametrize(
    ("answer", "cut", "failures"),
    [
        (answers([chunk("a"), chunk("b", "length"), USAGE, DONE]), False, set()),
        (answers([chunk("a"), DONE]), True, set()),
        (answers([chunk("a"), b'data: {"error": {"message": "m"}}\n', DONE]), True, set()),
        (answers([chunk("a"), b"data: {half"]), True, set()),
        (answers([DONE]), False, {"empty stream"}),
        (answers([chunk("a", "length"), USAGE.replace(b"5", b"4")]), False, {"answer of another length"}),
        (answers([chunk("a", "length"), DONE]), False, {"answer of another length"}),
        (answers([chunk("a", "length"), USAGE], plain(6)), False, {"answer of another length"}),
        (answers([chunk("a", "length"), USAGE], plain(5, "abort")), False, {"answer without an end"}),
        (answers([chunk("a", "length"), USAGE], b"{}"), False, {"KeyError"}),
    ],
    ids=(
        "whole", "no finish", "error event", "half an event", "empty",
        "token lost", "no usage", "token twice", "aborted", "no answer",
    ),
)  # fmt: skip
async def test_only_a_whole_answer_counts(answer: Answer, cut: bool, failures: set[str]) -> None:
    report = await report_of(answer)
    assert report.sent == report.answered + report.failed + report.streams_cut
    assert 0 < report.streams < report.sent
    assert report.streams_cut == (report.streams if cut else 0)
    assert set(report.failures) == failures
    assert (report.answered == report.sent) is not (cut or bool(failures))


@pytest.mark.parametrize(
    ("backend", "provided"), [("", False), ("demo", False), ("api/big-model", True), ("apis/x", False)]
)
async def test_who_answered_is_told_apart(backend: str, provided: bool) -> None:
    report = await report_of(answers([chunk("a", "length"), USAGE, DONE]), backend)
    assert report.answered == report.sent
    assert report.by_provider == (report.sent if provided else 0)
    assert report.backends == {backend: report.sent}


async def test_a_text_that_any_provider_understands_may_end_by_itself() -> None:
    asked: list[dict[str, Any]] = []

    def short(body: dict[str, Any]) -> list[bytes] | bytes:
        asked.append(body)
        return [chunk("a", "stop"), USAGE.replace(b"5", b"3")] if body["stream"] else plain(3, "stop")

    report = await report_of(short, chats=True)
    assert report.answered == report.sent
    assert all("messages" in body and "ignore_eos" not in body for body in asked)
    report = await report_of(short)
    assert report.failures.keys() == {"answer of another length"}
    report = await report_of(answers([chunk("a", "length"), USAGE], plain(3)), chats=True)
    assert report.failures.keys() == {"answer of another length"}, "cut at no limit that was asked for"


async def test_reports_add_up() -> None:
    one = await report_of(answers([chunk("a", "length"), USAGE], plain(6)), "demo")
    other = await report_of(answers([chunk("a", "length"), USAGE], plain(5, "abort")), "api/x")
    both = total([one, other])
    assert both.sent == one.sent + other.sent
    assert both.failures == {
        "answer of another length": one.failed,
        "answer without an end": other.failed,
    }
    assert both.backends == {"demo": one.answered, "api/x": other.answered}
    assert both.by_provider == other.answered > 0
    assert total([]) == LoadReport()
