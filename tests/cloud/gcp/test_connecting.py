"""Connections to Google that do not come about, and calls that wait for one."""

import asyncio
import contextlib
import socket

import aiohttp
import pytest
from aiohttp import web

from cloud.errors import CloudError, Uncertain
from cloud.gcp.client import GcpClient
from cloud.gcp.tokens import NoTokens


async def test_a_connection_that_does_not_come_about_has_changed_nothing():
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # nobody accepts: the next one hangs
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        client = GcpClient("p", NoTokens(), endpoint=url, timeout=30.0, connect_timeout=0.3)
        with pytest.raises(CloudError) as raised:
            await client.change("POST", "zones/z/instances", {})
        assert not isinstance(raised.value, Uncertain)
        await client.close()


async def test_a_call_that_waits_for_a_free_connection_is_not_given_up():
    free, asked = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        asked.set()
        await free.wait()
        return web.json_response({"name": "n"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = GcpClient("p", NoTokens(), endpoint=url, timeout=30.0, connect_timeout=1.0)
    client._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
    first = asyncio.create_task(client.read("zones/z/instances/one"))
    await asked.wait()
    second = asyncio.create_task(client.read("zones/z/instances/two"))
    done, _ = await asyncio.wait({second}, timeout=1.3)
    free.set()
    assert not done
    assert await asyncio.gather(first, second) == [{"name": "n"}] * 2
    await client.close()
    await runner.cleanup()
