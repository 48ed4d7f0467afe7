"""HTTPS of gateways that are processes: one hands over to the next while clients shake hands with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import GatewayRig, RefusedHeir, until

from tests.support.certificates import pair

pytestmark = pytest.mark.slow

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Shaking:
    """A client whose handshake is half done."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._to_server, self._to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._to_client, self._to_server, server_hostname="127.0.0.1")

    async def begin(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._writer.write(self._to_server.read())
        self._to_client.write(await self._reader.read(2**16))

    async def ask(self) -> bytes:
        """Finish the handshake and ask; the answer."""
        self._tls.do_handshake()
        self._tls.write(GET)
        self._writer.write(self._to_server.read())
        answer = b""
        while not answer.endswith(b"ok\n"):
            data = await self._reader.read(2**16)
            if not data:
                break
            self._to_client.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += self._tls.read(2**16)
        self._writer.close()
        return answer


@contextlib.asynccontextmanager
async def serving(directory: Path, **more: Any):
    """A gateway with HTTPS, its certificate and its port."""
    made = pair(directory).write()
    tls = {"tls_cert_file": str(made.certificate), "tls_key_file": str(made.key)}
    rig = GatewayRig(directory, tls | more)
    try:
        await rig.start()
        await rig.apply([])
        yield rig, made, int(rig.url.rpartition(":")[2])
    finally:
        await rig.close()


async def fresh(port: int, trust: ssl.SSLContext) -> bytes:
    """What a new client is answered that trusts one certificate alone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    answer = await reader.read()
    writer.close()
    return answer


async def test_handshakes_that_are_half_done_are_finished_by_the_process_that_began_them(short_dir):
    async with serving(short_dir) as (rig, first, port):
        clients = [Shaking(first.trust()) for _ in range(20)]
        await asyncio.gather(*(client.begin(port) for client in clients))
        second = pair(short_dir).write()
        old = rig.pid
        await rig.replace()
        assert rig.pid != old

        async def shows_it() -> bool:
            """The old one may still accept for a moment."""
            with contextlib.suppress(ssl.SSLCertVerificationError):
                return b" 200 " in await fresh(port, second.trust())
            return False

        await until("the heir shows what the files hold", shows_it)
        answers = await asyncio.gather(*(client.ask() for client in clients))
        assert all(answer.endswith(b"ok\n") for answer in answers)
        await until("the old gateway ends", partial(_gone, old))


async def test_a_heir_that_finds_a_bad_pair_leaves_everything_as_it_was(short_dir):
    async with serving(short_dir) as (rig, first, port):
        first.key.write_bytes(pair(short_dir).secret)
        with pytest.raises(RefusedHeir, match="the private key is not that of the certificate"):
            await rig.replace()
        assert b" 200 " in await fresh(port, first.trust())
        first.write()
        await rig.replace()
        assert b" 200 " in await fresh(port, first.trust())


async def test_a_client_that_never_ends_its_handshake_holds_up_no_stop(short_dir):
    async with serving(short_dir, head_timeout=0.5, linger=0.0) as (rig, first, port):
        client = Shaking(first.trust())
        await client.begin(port)
        os.kill(rig.pid, signal.SIGTERM)
        await until("the gateway ends", partial(_gone, rig.pid))


async def _gone(pid: int) -> bool:
    return not _runs(pid)


def _runs(pid: int) -> bool:
    """False for a process that has ended, also where nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
