"""Broken requests: an answer, one line, no traceback; and few lines however many there are."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cloud.serving.requests import Complaints
from tests.support.node_bench import make_certificate

pytestmark = pytest.mark.asyncio

POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
BROKEN = {
    "garbage": b"\x00\xff\xfe garbage \r\n\r\n",
    "no method": b" / HTTP/1.1\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c2010000be0303") + b"\x11" * 180 + b"\r\n\r\n",
    "header without colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nnothing\r\n\r\n",
    "control character": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 2_000 + b"\r\n",
    "bad length": POST + b"Content-Length: many\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    "bad encoding": POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    "no text": b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: \xff\r\n\r\n",
    "bad target": b"GET http://[bad HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.fixture(autouse=True)
def nothing_beside(caplog: pytest.LogCaptureFixture) -> Any:
    """Neither aiohttp nor asyncio says anything of its own, which would be a traceback."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.records if record.name != "tests"] == []


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_request_is_answered_and_is_one_line(serving: Any, say: Any, name: str) -> None:
    with capture_logs() as lines:
        async with serving() as port:
            answer = await say(port, BROKEN[name])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer
    assert b"application/json" in head
    assert isinstance(json.loads(body)["error"], str)
    assert len(body) < 300
    (line,) = lines
    assert (line["event"], line["listener"]) == ("request.malformed", f"127.0.0.1:{port}")
    assert line["peer"].startswith("127.0.0.1:")
    assert "\n" not in line["what"]
    assert len(line["what"]) <= 120
    assert "exc_info" not in line


@pytest.mark.parametrize("path", [b"/", b"/unread"])
async def test_a_caller_that_hangs_up_in_a_body_is_one_line_at_most(serving: Any, path: bytes) -> None:
    words = POST.replace(b"POST /", b"POST " + path) + b"Content-Length: 1000\r\n\r\n{"
    with capture_logs() as lines:
        async with serving() as port:
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.sendall(words)
                for _ in range(200):
                    await asyncio.sleep(0)
                reset = struct.pack("ii", 1, 0)
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            for _ in range(200):
                await asyncio.sleep(0)
    assert len(lines) <= 1
    assert all((line["event"], "exc_info" in line) == ("request.malformed", False) for line in lines), lines


@pytest.mark.parametrize("words", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: local"])
async def test_half_a_head_is_nothing_to_speak_of(serving: Any, say: Any, words: bytes) -> None:
    with capture_logs() as lines:
        async with serving() as port:
            await say(port, words, hang_up=True)
            for _ in range(200):
                await asyncio.sleep(0)
    assert lines == []


@pytest.mark.parametrize("path", ["/fail", "/lose"])
async def test_a_fault_of_ours_keeps_its_traceback_and_tells_callers_nothing(
    serving: Any, say: Any, path: str
) -> None:
    with capture_logs() as lines:
        async with serving() as port:
            answer = await say(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"ours" not in answer
    assert b"its log has the reason" in answer
    (line,) = lines
    assert (line["event"], line["method"], line["path"]) == ("request.crashed", "GET", path)
    assert "of ours" in str(line["exc_info"])


async def test_ten_thousand_broken_requests_are_a_few_lines(serving: Any) -> None:
    """Their number is in the lines: what was held back is counted."""
    with capture_logs() as lines:
        async with serving() as port:
            for _ in range(100):
                callers = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
                for caller in callers:
                    caller.sendall(b"\xff\xff\r\n\r\n")
                for _ in range(400):
                    await asyncio.sleep(0)
                for caller in callers:
                    caller.close()
            async with asyncio.timeout(60):
                while sum(line.get("count", 1) for line in lines) < 9_000:  # noqa: ASYNC110 - a log is read
                    await asyncio.sleep(0.05)
    assert len(lines) < 100
    assert {line["event"] for line in lines} == {"request.malformed"}


async def test_lines_come_at_a_rate_that_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """First at once, then after 1, 2, 4 s and so on while it goes on; after a pause without any, at once."""
    pauses: list[float] = []
    due: list[Any] = []
    loop = asyncio.get_running_loop()
    said: list[dict[str, Any]] = []
    complaints = Complaints(lambda **values: said.append(values))

    def later(pause: float, call: Any) -> str:
        pauses.append(pause)
        due.append(call)
        return "timer"

    monkeypatch.setattr(loop, "call_later", later)
    complaints.note(what="first")
    for _ in range(9):
        for _ in range(5):
            complaints.note(what="more", exc_info=ValueError())
        due.pop()()
    assert [line.get("count") for line in said] == [None] + [5] * 9
    assert all("exc_info" not in line for line in said[1:])
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    due.pop()()
    complaints.note(what="again")
    assert said[-1] == {"what": "again"}
    assert pauses[-1] == 1


async def test_who_does_not_speak_tls_is_one_line(serving: Any, say: Any, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    with capture_logs() as lines:
        async with serving(tls=server) as port:
            assert b"HTTP" not in await say(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (line,) = lines
    assert (line["event"], line["what"]) == ("request.malformed", "it does not speak TLS")
