"""The gateway is asked where requests go: dead, silent, dribbling, foreign and broken ones are told apart."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from cloud.balancers import routes
from cloud.balancers.routes import SCHEMA, read_routes
from cloud.errors import Uncertain

GOOD = orjson.dumps({"schema": SCHEMA, "routes": [], "providers": []})


def http(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body


@asynccontextmanager
async def answering(*parts: bytes, hangs: bool = False) -> AsyncIterator[Path]:
    """A control socket at which every connection gets these bytes, and then its end unless it hangs."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        if hangs:
            await over.wait()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="orch-") as folder:
        path = Path(folder) / "gateway.sock"
        server = await asyncio.start_unix_server(serve, path)
        try:
            yield path
        finally:
            over.set()
            server.close()


async def test_a_document_is_read() -> None:
    async with answering(http(GOOD)) as path:
        found = await read_routes(path)
        assert (dict(found.routes), dict(found.providers)) == ({}, {})


@pytest.mark.parametrize(
    ("parts", "hangs", "why"),
    [
        ((), True, "did not answer within 0.2 s"),
        ((http(GOOD, length=1000),), True, "did not answer within 0.2 s"),  # begins, and never ends
        ((), False, "cannot be reached"),
        ((http(GOOD, length=1000),), False, "cannot be reached"),
        ((http(b"{}", "404 Not Found"),), False, "answered 404"),
        ((http(b"no json"),), False, "cannot read"),
        ((http(b"[]"),), False, "cannot read"),
        ((http(b'{"schema": "gateway-routes/2"}'),), False, "gateway-routes/2"),
        ((http(b"x" * 2000),), False, "longer than 1000 bytes"),
    ],
    ids=["silent", "half", "ends", "cut", "older", "no-json", "list", "newer", "long"],
)
async def test_what_is_no_document_is_uncertain_and_says_why(
    parts: tuple[bytes, ...], hangs: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_BYTES", 1000)
    async with answering(*parts, hangs=hangs) as path:
        with pytest.raises(Uncertain, match=why) as caught:
            await read_routes(path, timeout=0.2 if hangs else 20.0)
        assert str(path) in str(caught.value)


async def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(Uncertain, match="cannot be reached"):
        await read_routes(tmp_path / "none.sock")
