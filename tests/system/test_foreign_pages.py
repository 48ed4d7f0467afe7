"""What pages in a real browser can do to a control socket that was forwarded to a port, as with ssh -L."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
    pytest.mark.debian("chromium", package="chromium"),
]

FOREIGN = "evil.example"
"""A name that the browser finds on the loopback, as one does that was made to lead there."""
PATIENCE = 60.0

ATTACKS = """
const change = '{"reason": "of a foreign page"}';
const send = (path, more) => fetch(TARGET + path, {method: 'POST', mode: 'no-cors', body: change, ...more});
const form = (path, kind) => new Promise(done => {
  const frame = document.createElement('iframe');
  frame.name = kind;
  document.body.append(frame);
  const made = document.createElement('form');
  Object.assign(made, {method: 'post', enctype: kind, action: TARGET + path, target: kind});
  const field = document.createElement('input');
  Object.assign(field, {name: '{"reason": "a form", "x": "', value: '"}'});
  made.append(field);
  document.body.append(made);
  frame.onload = done;
  made.submit();
});
const attacks = [
  () => send('/v1/pause'),
  () => send('/v1/pause', {headers: {'Content-Type': 'text/plain'}}),
  () => send('/v1/pause', {headers: {'Content-Type': 'application/x-www-form-urlencoded'}}),
  () => send('/v1/pause', {body: null}),
  () => send('/v1/pause', {body: new Blob([change])}),
  () => send('/v1/pause', {referrerPolicy: 'no-referrer'}),
  () => send('/v1/pause', {mode: 'cors', headers: {'Content-Type': 'application/json'}}),
  () => form('/v1/pause', 'text/plain'),
  () => form('/v1/pause', 'application/x-www-form-urlencoded'),
  () => navigator.sendBeacon(TARGET + '/v1/pause', change),
];
"""
OWN = """
const attacks = [
  () => fetch('/v1/pause', {method: 'POST', headers: {'Content-Type': 'application/json'},
                            body: '{"reason": "of its own page"}'}),
];
"""
REBOUND = """
const attacks = [
  () => fetch('/v1/status'),
  () => fetch('/v1/pause', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'}),
];
"""
PAGE = """<!doctype html><title>a page</title><body><script>
const TARGET = %s;
%s
(async () => {
  for (const attack of attacks) { try { await attack(); } catch (error) {} }
  await fetch(%s, {mode: 'no-cors'});
})();
</script>"""


@dataclass
class Forwarded:
    """A port that leads to a unix socket. `answers`: method, path and status of each request on it.

    `page` is served at /page, as a page of the daemon's own would be.
    """

    socket: Path
    port: int = 0
    page: str = ""
    answers: list[tuple[str, str, int]] = field(default_factory=list)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, with its connection closed after it."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ", 2)
            if path == "/page":
                kind = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
                writer.write((kind + self.page).encode())
            else:
                lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-l")]
                body = await reader.readexactly(sum(map(int, lengths)))
                upward, onward = await asyncio.open_unix_connection(str(self.socket))
                onward.write(head.replace(b"keep-alive", b"close") + body)
                said = await upward.read()
                onward.close()
                self.answers.append((method, path, int(said.split()[1])))
                writer.write(said)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def forwarded(socket: Path) -> AsyncIterator[Forwarded]:
    made = Forwarded(socket)
    async with await asyncio.start_server(made.connection, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[tuple[int, dict[str, str], asyncio.Event]]:
    """A web site: its port, its one page, and whether the page has come to its end."""
    pages: dict[str, str] = {"page": ""}
    done = asyncio.Event()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=pages["page"], content_type="text/html")

    async def end(_: web.Request) -> web.Response:
        done.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/done", end)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], pages, done
    finally:
        await runner.cleanup()


async def visit(url: str, done: asyncio.Event, profile: Path) -> None:
    """Open a page in Chromium and let its script run to its end."""
    done.clear()
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        browser = await asyncio.create_subprocess_exec(
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(f"--user-data-dir={profile}", f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1"),
            *("--remote-debugging-port=0", url),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(PATIENCE):
            await done.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()


async def paused(stack: Any) -> Any:
    return (await stack.status())["daemon"]["paused"]


async def test_a_foreign_page_changes_nothing_and_a_page_of_its_own_does(stack: Any, tmp_path: Path) -> None:
    async with forwarded(stack.sockets / "daemon") as port, site() as (site_port, pages, done):
        end = json.dumps(f"http://127.0.0.1:{site_port}/done")
        for name in ("127.0.0.1", "localhost"):
            target = json.dumps(f"http://{name}:{port.port}")
            pages["page"] = PAGE % (target, ATTACKS, end)
            await visit(f"http://{FOREIGN}:{site_port}/", done, tmp_path / name)
            assert await paused(stack) is None, port.answers
        arrived = [status for method, _, status in port.answers if method == "POST"]
        assert len(arrived) >= 16, "the browser sent them"
        assert set(arrived) <= {403, 415}, port.answers

        port.answers.clear()
        port.page = PAGE % ('""', REBOUND, end)
        await visit(f"http://{FOREIGN}:{port.port}/page", done, tmp_path / "rebound")
        asked = {(path, status) for _, path, status in port.answers if path.startswith("/v1/")}
        assert asked == {("/v1/status", 421), ("/v1/pause", 421)}
        assert await paused(stack) is None

        port.answers.clear()
        port.page = PAGE % ('""', OWN, end)
        await visit(f"http://127.0.0.1:{port.port}/page", done, tmp_path / "own")
        assert ("POST", "/v1/pause", 200) in port.answers
        assert (await paused(stack))["reason"] == "of its own page"


async def test_a_foreign_page_does_not_end_a_pause(stack: Any, tmp_path: Path) -> None:
    assert (await stack.cli("pause", "-m", "meant")).code == 0
    async with forwarded(stack.sockets / "daemon") as port, site() as (site_port, pages, done):
        end = json.dumps(f"http://127.0.0.1:{site_port}/done")
        target = json.dumps(f"http://127.0.0.1:{port.port}")
        pages["page"] = PAGE % (target, ATTACKS.replace("/v1/pause", "/v1/resume"), end)
        await visit(f"http://{FOREIGN}:{site_port}/", done, tmp_path / "resume")
    assert (await paused(stack))["reason"] == "meant"
    assert (await stack.cli("resume")).code == 0
