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


async def test_every_field_of_a_document_is_read() -> None:
    backend = {"kind": "pool", "name": "chat", "model": "m", "weight": 3, "state": "", "sound": True}
    other = {
        "kind": "provider",
        "name": "api",
        "model": "",
        "weight": None,
        "state": "closed",
        "sound": False,
    }
    route = {
        "name": "small",
        "models": ["a", "b"],
        "data": "may leave",
        "goes_to": "pool:chat",
        "left_out": ["provider:api"],
        "servable": True,
        "backends": [backend | {"requests": {"ok": 7}}, other | {"requests": {}}],
    }
    second = route | {"name": "big", "data": "stays", "goes_to": None, "left_out": [], "servable": False}
    second["backends"] = [backend | {"requests": {}}]
    provider = {"name": "api", "state": "capped", "in_flight": 2, "over_cap": {"small": 5}}
    body = {"schema": SCHEMA, "routes": [route, second], "providers": [provider]}
    async with answering(http(orjson.dumps(body))) as path:
        found = await read_routes(path)
    assert list(found.routes) == ["small", "big"]
    small, big = found.routes.values()
    assert (small.goes_to, small.left_out, small.servable) == ("pool:chat", ("provider:api",), True)
    assert (big.goes_to, big.left_out, big.servable) == (None, (), False)
    assert (small.route.models, small.route.stays, big.route.stays) == (("a", "b"), False, True)
    assert [(str(b.kind), b.name, b.model, b.weight) for b in small.route.backends] == [
        ("pool", "chat", "m", 3),
        ("provider", "api", "", None),
    ]
    assert [(b.state, b.sound, dict(b.requests)) for b in small.backends] == [
        ("", True, {"ok": 7}),
        ("closed", False, {}),
    ]
    (row,) = found.providers.values()
    assert (row.state, row.in_flight, dict(row.over_cap)) == ("capped", 2, {"small": 5})


@pytest.mark.parametrize(
    ("parts", "hangs", "why"),
    [
        ((), True, "did not answer within 0.2 s"),
        ((http(GOOD, length=1000),), True, "did not answer within 0.2 s"),  # begins, and never ends
        ((), False, "cannot be reached"),
        ((http(GOOD, length=1000),), False, "cannot be reached"),
        ((http(b"{}", "404 Not Found"),), False, "answered 404"),
        ((http(b"no json"),), False, "sent no JSON"),
        ((http(b"[]"),), False, "cannot read"),
        ((http(b'{"schema": "gateway-routes/2"}'),), False, "gateway-routes/2"),
        ((http(b"x" * 2000),), False, "more than 1000 bytes"),
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


async def test_a_document_may_be_as_long_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_BYTES", len(GOOD))
    async with answering(http(GOOD)) as path:
        assert not (await read_routes(path, timeout=20.0)).routes


async def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(Uncertain, match="cannot be reached"):
        await read_routes(tmp_path / "none.sock")
