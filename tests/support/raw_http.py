"""A client that speaks HTTP byte by byte, as no library would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Raw:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.writer.write(data)
        await self.writer.drain()

    @property
    def open(self) -> bool:
        """False once the other side has ended it."""
        return self.reader.exception() is None and not self.reader.at_eof()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers (names in lower case) and JSON body of the next answer that has a length."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, json.loads(body)


Connect = Callable[[int], Awaitable[Raw]]


@contextlib.asynccontextmanager
async def connections(limit: int = 2**20, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connect]:
    """A function that connects to a port of this machine; what it opened is closed at the end."""
    opened: list[Raw] = []

    async def connect(port: int) -> Raw:
        one = Raw(*await asyncio.open_connection("127.0.0.1", port, limit=limit, ssl=tls))
        opened.append(one)
        return one

    try:
        yield connect
    finally:
        for one in opened:
            one.writer.close()
