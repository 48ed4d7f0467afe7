"""What runs out around the daemon: file descriptors, a reader of its log. Notices are heard all the same."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
import termios
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from cloud.serving.sockets import CONNECTIONS_MOST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def callers(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing and are never closed."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                caller.connect(("127.0.0.1", port))
            found.append(caller)
        yield found


async def served(stack: Any) -> set[str]:
    """The nodes that the gateway sends new requests to."""
    connector = aiohttp.UnixConnector(str(stack.sockets / "gateway"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://gateway/v1/state") as answer,
    ):
        return {target["id"] for target in (await answer.json())["targets"] if target["phase"] == "active"}


async def drained_for_a_notice(stack: Any, node: str) -> None:
    """A node gets its notice and is out of service, by the gateway's own word, before its deadline."""
    await stack.admin("reclaim", node=node, notice_s=30.0)

    async def detached() -> bool:
        return node not in await served(stack)

    await stack.until("the noticed node gets no new request", detached, patience=25.0)


async def test_callers_that_stay_do_not_use_up_the_descriptors(stack: Any) -> None:
    pid = (await stack.status())["daemon"]["pid"]
    node = (await stack.a_node("spot"))["id"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files(pid) + CONNECTIONS_MOST + 60, before[1]))
    try:
        with callers(stack.monitoring_port, 3 * CONNECTIONS_MOST):
            await stack.turns(5)
            async with stack.traffic() as traffic:
                await drained_for_a_notice(stack, node)
                await traffic.answers(20)
        assert traffic.report.failures == {}
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    await stack.settled()
    assert (await stack.status())["daemon"]["pid"] == pid


async def test_callers_that_say_nothing_keep_nobody_out(stack: Any) -> None:
    pid = (await stack.status())["daemon"]["pid"]
    with callers(stack.monitoring_port, 2 * CONNECTIONS_MOST):
        for _ in range(20):
            assert (await stack.get(stack.monitoring_port, "/healthz")).startswith("HTTP/1.1 200")
    assert (await stack.status())["daemon"]["pid"] == pid


async def test_nobody_reads_the_log_and_a_notice_drains_its_node(stack: Any) -> None:
    """A daemon whose standard error is a full pipe."""
    assert await stack.stop("daemon") == 0
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    child = await asyncio.create_subprocess_exec(
        *stack.command("run"), stdin=asyncio.subprocess.DEVNULL, stderr=writer, env=stack.full_environment
    )
    os.close(writer)
    try:
        await stack.settled()
        node = (await stack.a_node("spot"))["id"]

        async def full() -> bool:
            os.kill(child.pid, signal.SIGHUP)  # says a line
            (waiting,) = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))
            return waiting > size - 512

        await stack.until("the pipe is full", full)
        await stack.turns(5)
        async with stack.traffic() as traffic:
            await drained_for_a_notice(stack, node)
            await traffic.answers(20)
        assert traffic.report.failures == {}
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        os.close(reader)
    await stack.start("daemon")
    await stack.settled()


async def test_no_descriptor_is_left_and_a_notice_drains_its_node(stack: Any) -> None:
    """Not one more file, socket or connection can be opened; what is open already must do."""
    pid = (await stack.status())["daemon"]["pid"]
    node = (await stack.a_node("spot"))["id"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        async with stack.traffic() as traffic:
            await drained_for_a_notice(stack, node)
            await traffic.answers(20)
        assert traffic.report.failures == {}
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    await stack.settled()
    assert (await stack.status())["daemon"]["pid"] == pid, "it went on"
