"""What the gateway says of how it serves: whether clients get in, and how their last requests ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from cloud.clock import SystemClock
from orchestrator.gateway import selfcheck
from orchestrator.gateway.metrics import Outcome, Recent
from orchestrator.gateway.selfcheck import SelfCheck

WIRES = ("http", "https")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_EVERY", 0.02)
    monkeypatch.setattr(selfcheck, "_PATIENCE", 0.5)


async def refuses(running) -> str:
    return (await running.state())["refuses"]


async def test_a_listener_that_is_closed_is_said_although_the_control_socket_answers(gateways, eventually):
    running = await gateways()
    assert await refuses(running) == ""
    running.gateway._public_site._server.close()
    await eventually(lambda: refuses(running))
    assert "its own listener" in await refuses(running)


async def test_a_queue_of_callers_that_nobody_takes_is_said_and_taken_back(gateways, eventually):
    """Accepted by the kernel, never by the process: what is left when it has no descriptor for them."""
    running = await gateways()
    loop = asyncio.get_running_loop()
    listener = running.gateway._public
    loop.remove_reader(listener.fileno())
    await eventually(lambda: refuses(running))
    assert "no answer within" in await refuses(running)
    server = running.gateway._public_site._server
    loop._start_serving(server._protocol_factory, listener, None, server, 128)
    await eventually(lambda: _lets_in(running))


async def _lets_in(running) -> bool:
    return await refuses(running) == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 421 Misdirected Request\r\n\r\n", ""),
        (b"", "hung up on"),
        (b"SSH-2.0-OpenSSH_9\r\n", "something else than HTTP"),
        (None, "no answer within"),
    ],
)
async def test_one_call_that_fails_is_not_believed(answer: bytes | None, words: str):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if answer is not None:
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    check = SelfCheck("0.0.0.0", server.sockets[0].getsockname()[1], SystemClock())
    async with server:
        await check.look()
        assert check.fault == ""
        await check.look()
        assert words in check.fault
        assert bool(check.fault) is bool(words)


async def test_a_listener_on_ipv6_is_called_there():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        check = SelfCheck("::", probe.getsockname()[1], SystemClock())
        await check.look()
        await check.look()
        assert "refused" in check.fault.lower()


def test_requests_of_the_last_seconds_are_counted():
    recent = Recent()
    for at, outcome in (
        (100.2, Outcome.OK),
        (100.9, Outcome.CLIENT_ERROR),
        (101.0, Outcome.REFUSED),
        (104.0, Outcome.FAILED),
        (104.0, Outcome.UPSTREAM_ERROR),
        (105.0, Outcome.CUT),
        (106.0, Outcome.CANCELLED),
        (106.0, Outcome.BAD_REQUEST),
    ):
        recent.add(outcome, at)

    def counts(now: float) -> tuple[int, int]:
        found = recent.counts(now)
        assert found["seconds"] == 10
        return found["answered"], found["failed"]

    assert counts(109.9) == (2, 4)
    assert counts(110.0) == (0, 4)
    assert counts(111.0) == (0, 3)
    assert counts(130.0) == (0, 0)
    recent.add(Outcome.OK, 140.0)
    assert counts(90.0) == (0, 0), "the clock was set back"


async def test_requests_that_nobody_could_serve_are_in_the_state(gateways, ask):
    running = await gateways(queue_deadline=0.01)
    for _ in range(3):
        assert (await ask(running)).status == 503
    recent = (await running.state())["recent"]
    assert (recent["answered"], recent["failed"]) == (0, 3)
