"""Sockets that outlive a gateway: given by systemd, or handed from one gateway process to the next.

A gateway that is to be replaced starts its heir on the same listening sockets, waits until the heir serves,
and only then stops accepting; it ends when its own requests have. No connection is refused and none is reset,
since the sockets are never closed. The heir is detached, so that the service manager and not the old gateway
is its parent. One variable of the environment tells the heir what it holds:

    ORCHESTRATOR_GATEWAY_HANDOVER = {"sockets": [7, 8], "reply": 9, "owned": true}

`sockets` and `reply` are file descriptors. On `reply` the heir says "ready PID" or why it cannot serve, and
the other end is closed once the heir is the service. `owned`: the file of the control socket is the gateways'
to remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from orchestrator.gateway.config import GatewayConfig, GatewayError

VARIABLE: Final = "ORCHESTRATOR_GATEWAY_HANDOVER"

_FIRST_GIVEN: Final = 3  # sd_listen_fds(3)
_HEIR_STARTS: Final = 60.0  # s
_REPLY_MOST: Final = 8192


@dataclass(slots=True)
class Inheritance:
    """What a gateway was given at its start: listening sockets, and a way to answer a predecessor."""

    public: socket.socket | None = None
    control: socket.socket | None = None
    owned: bool = True
    reply: socket.socket | None = None

    def check(self, config: GatewayConfig) -> None:
        """Raises GatewayError where a given socket is not the one that the configuration names."""
        if self.control is not None and Path(self.control.getsockname()) != config.socket:
            raise GatewayError(_other(self.control.getsockname(), "gateway.socket", str(config.socket)))
        if self.public is not None:
            host, port = self.public.getsockname()[:2]
            wanted = _addresses(config.host, config.port)
            if config.port not in (0, port) or host not in wanted:
                raise GatewayError(_other(f"{host}:{port}", "gateway.listen", f"{config.host}:{config.port}"))

    def ready(self) -> None:
        """Tell the predecessor that this gateway serves. Raises GatewayError when it has given up waiting."""
        if self.reply is not None:
            try:
                self.reply.sendall(b"ready %d" % os.getpid())
            except OSError:
                raise GatewayError(
                    "gateway: the gateway before this one has given up waiting for it"
                ) from None

    async def is_the_service(self) -> None:
        """Wait until the predecessor has named the new main process to the service manager."""
        if self.reply is not None:
            self.reply.setblocking(False)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_recv(self.reply, 1)
            self.reply.close()
            self.reply = None


@contextlib.contextmanager
def inheritance(environment: MutableMapping[str, str] = os.environ) -> Iterator[Inheritance]:
    """What this process was given; a predecessor learns of every exception that leaves the block.

    The variables are taken out of the environment. Raises GatewayError for sockets that are of no use here.
    """
    given = Inheritance()
    text = environment.pop(VARIABLE, "")
    if text:
        told = orjson.loads(text)
        numbers, given.owned = told["sockets"], told["owned"]
        given.reply = socket.socket(fileno=told["reply"])
    else:
        numbers = _given_by_systemd(environment)
        given.owned = not numbers
    try:
        for number in numbers:
            _sort(given, socket.socket(fileno=number))
        yield given
    except BaseException as error:
        if given.reply is not None:
            with contextlib.suppress(OSError):
                given.reply.sendall(str(error).encode()[:_REPLY_MOST])
        raise


async def start_heir(sockets: Sequence[socket.socket], *, owned: bool) -> tuple[int, socket.socket]:
    """Start this very command again on the same sockets and wait until it serves.

    Returns the heir's process number and the socket to close once the service manager knows it. Raises
    GatewayError with the heir's reason; nothing has changed then.
    """
    ours, reply = socket.socketpair()
    with reply:
        numbers = [s.fileno() for s in sockets]
        told = {"sockets": numbers, "reply": reply.fileno(), "owned": owned}
        environment = {**os.environ, VARIABLE: orjson.dumps(told).decode()}
        environment.pop("WATCHDOG_PID", None)  # the heir has a number of its own
        shell = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", '"$@" &', "sh", sys.executable, *sys.orig_argv[1:]),
            env=environment,
            pass_fds=[*numbers, reply.fileno()],
        )
        await shell.wait()
    ours.setblocking(False)
    try:
        async with asyncio.timeout(_HEIR_STARTS):
            said = (await asyncio.get_running_loop().sock_recv(ours, _REPLY_MOST)).decode(errors="replace")
    except (TimeoutError, OSError):
        said = f"it did not say that it serves within {_HEIR_STARTS:.0f} s"
    word, _, number = said.partition(" ")
    if word == "ready" and number.isdigit():
        return int(number), ours
    ours.close()
    raise GatewayError(said or "it ended without a word; see its log")


def _given_by_systemd(environment: MutableMapping[str, str]) -> list[int]:
    count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    return list(range(_FIRST_GIVEN, _FIRST_GIVEN + int(count)))


def _sort(given: Inheritance, found: socket.socket) -> None:
    os.set_inheritable(found.fileno(), False)
    place = "control" if found.family == socket.AF_UNIX else "public"
    if getattr(given, place) is not None:
        raise GatewayError(
            f"gateway: {found.getsockname()}: one address for clients and one unix socket for the daemon are "
            "all that the gateway takes; remove the other ListenStream= from its socket unit"
        )
    setattr(given, place, found)


def _addresses(host: str, port: int) -> set[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return set()
    return {str(address[0]) for *_, address in found}


def _other(given: str, key: str, wanted: str) -> str:
    return (
        f"gateway: the socket that it was given listens on {given}, and {key} is {wanted}; change one of "
        "them: `systemctl edit spot-orchestrator-gateway.socket` and restart that, or the configuration"
    )
