"""Servers behind a balancer and clients in front of it, in a process of their own, driven by lines of JSON.

A bench that calls the adapter beside them would otherwise measure how busy its own event loop is.

    await load.ask("serve", names=["n0", "n1"])     {"addresses": {"n0": "127.0.0.1:4711", ...}}
    await load.ask("aim", url="http://127.0.0.1:1", path="/v1/chat/completions", clients=16)
    await load.ask("go"), ask("pause")              a pause is answered once nobody asks any more
    await load.ask("left", name="n0"), ask("back", name="n0")
    await load.ask("until", asked=1000)             once so many were asked, or one failed
    await load.ask("end")                           {"asked": 1000, "failed": [...], "served": {"n0": 100}}

A request failed when it has no 200, or is answered by a server that had left when it was sent, and has not
come back since.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp

ROOT: Final = Path(__file__).resolve().parents[2]
BODY: Final = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TIMEOUT: Final = 30.0  # s of a request


class Load:
    """The other end: a child process. Its answers come in the order of the questions."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Have it do something and wait for its answer."""
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("the load has no pipes")
        self._child.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        line = await self._child.stdout.readline()
        if not line:
            raise RuntimeError("the load ended")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.asynccontextmanager
async def load() -> AsyncIterator[Load]:
    """A load, ended with the body."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from tests.support.balancer_load import main; main()",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Load(child)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


class _Played:
    """What the child does."""

    def __init__(self) -> None:
        self.servers: dict[str, Any] = {}
        self.asked = 0
        self.failed: list[str] = []
        self.left: set[str] = set()
        self.where = ""
        self.over = False
        self._going = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []
        self._idle = 0

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order; its answer."""
        what = order["do"]
        self.where = order.get("where", self.where)
        if what == "serve":
            return {"addresses": await self._serve(order["names"])}
        if what == "aim":
            work = [self._client(order["url"] + order["path"]) for _ in range(order["clients"])]
            self._clients = [asyncio.create_task(each) for each in work]
        elif what == "go":
            self._going.set()
        elif what == "pause":
            self._going.clear()
            while self._idle < len(self._clients):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        elif what == "left":
            self.left.add(order["name"])
        elif what == "back":
            self.left.discard(order["name"])
        elif what == "until":
            while self.asked < order["asked"] and not self.failed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        elif what == "end":
            self.over = True
            self._going.set()
            await asyncio.gather(*self._clients)
        served = {name: server.served for name, server in self.servers.items()}
        return {"asked": self.asked, "failed": self.failed, "served": served}

    async def _serve(self, names: list[str]) -> dict[str, str]:
        from tests.support.named_backends import NamedBackend

        for name in names:
            self.servers[name] = server = NamedBackend(name)
            await server.start()
        return {name: server.address for name, server in self.servers.items()}

    async def _client(self, url: str) -> None:
        """Ask one request after the other, over a connection that is kept."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
            while not self.over:
                if not self._going.is_set():
                    self._idle += 1
                    await self._going.wait()
                    self._idle -= 1
                    continue
                await self._ask(session, url, frozenset(self.left))
                self.asked += 1

    async def _ask(self, session: aiohttp.ClientSession, url: str, gone: frozenset[str]) -> None:
        try:
            async with session.post(url, json=BODY) as answer:
                text = await answer.text()
                if answer.status != 200:
                    self.failed.append(f"{self.where}: {answer.status} {text[:80]}")
                elif (name := str(json.loads(text)["name"])) in gone & self.left:
                    self.failed.append(f"{self.where}: answered by {name}, which had left")
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            self.failed.append(f"{self.where}: {type(error).__name__} {error}")


async def _obey() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    played = _Played()
    while line := await reader.readline():
        print(json.dumps(await played.do(json.loads(line))), flush=True)


def main() -> None:
    """Obey until the pipe ends."""
    asyncio.run(_obey())
