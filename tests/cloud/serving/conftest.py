"""A listener that a test speaks to byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from cloud.serving.sockets import listen_tcp

Serving = Callable[..., contextlib.AbstractAsyncContextManager[int]]


class Changed:
    """An application that reads and changes something, or fails."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def app(self) -> web.Application:
        async def read(_: web.Request) -> web.Response:
            return web.json_response({"ok": True})

        async def change(request: web.Request) -> web.Response:
            self.bodies.append(await request.read())
            return web.json_response({"ok": True})

        async def unread(_: web.Request) -> web.Response:
            return web.json_response({"ok": True})

        async def fail(_: web.Request) -> web.Response:
            raise RuntimeError("secret words of ours")

        async def lose(_: web.Request) -> web.Response:
            raise ConnectionResetError("of a connection of ours")

        app = web.Application()
        app.router.add_get("/", read)
        app.router.add_post("/", change)
        app.router.add_post("/unread", unread)
        app.router.add_get("/fail", fail)
        app.router.add_get("/lose", lose)
        return app


@pytest.fixture
def changed() -> Changed:
    return Changed()


@pytest.fixture
def serving(changed: Changed) -> Serving:
    """`async with serving(...) as port`: the application on a free port."""

    @contextlib.asynccontextmanager
    async def serve(**more: Any) -> AsyncIterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        runner = await listen_tcp(changed.app(), "127.0.0.1", port, **more)
        try:
            yield port
        finally:
            await runner.cleanup()

    return serve


@pytest.fixture
def say() -> Callable[..., Any]:
    """Sends bytes on a connection of its own; returns all that came back until the end."""

    async def send(port: int, words: bytes, *, hang_up: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(words)
                await writer.drain()
                if hang_up:
                    return b""
                async with asyncio.timeout(20):
                    return await reader.read()
            return b""
        finally:
            writer.close()

    return send
