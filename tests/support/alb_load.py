"""Requests that reach a balancer's connections when these were idle for about as long as engines keep them.

For the tests and for bench/alb_keepalive.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "aws_shim"))

from alb import Alb

from orchestrator.demo.processes import die_with_parent

_BODY = b'{"model": "tiny", "prompt": "hi", "max_tokens": 1}'
_REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: balancer\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


@contextlib.asynccontextmanager
async def engines(count: int, answer: float, variables: Mapping[str, str]) -> AsyncIterator[list[int]]:
    """Simulated engines as processes with these variables, whose answers take `answer` s; their ports."""
    started = []
    command = (sys.executable, "-m", "cloud.engines.simulated_server", "--model", "none", "--port", "0")
    flags = ("--served-model-name", "tiny", "--max-num-seqs", "1024")
    for _ in range(count):
        started.append(
            await asyncio.create_subprocess_exec(
                *(*command, *flags, "--time-to-first-token", f"{answer:g}"),
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **variables},
                preexec_fn=die_with_parent,
            )
        )
    try:
        yield [await _port(process) for process in started]
    finally:
        for process in started:
            process.kill()
            await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        if b"ready on" in line:
            return int(line.rpartition(b":")[2])
    raise AssertionError("an engine ended before it was ready")


@contextlib.asynccontextmanager
async def balancer(
    ports: Iterable[int], idle_timeout: float, distance: float = 0.001
) -> AsyncIterator[tuple[Any, int]]:
    """The stand-in of an Application Load Balancer before these targets, and its port."""
    turns = cycle(ports)
    alb = Alb(lambda: ("127.0.0.1", next(turns), lambda: None), lambda: idle_timeout, distance)
    port = await alb.listen()
    try:
        yield alb, port
    finally:
        await alb.close()


async def wave(port: int, clients: int, spread: float, chance: random.Random) -> Counter[int]:
    """One request of each client, all within `spread` seconds; how many answers had each status.

    While their answers take longer than that, each request needs a connection of its own to a target. The
    pause between two waves decides how long these were idle.
    """

    async def ask(after: float) -> int:
        await asyncio.sleep(after)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_REQUEST)
            return int((await reader.readuntil(b"\r\n\r\n")).split()[1])
        finally:
            writer.close()

    return Counter(await asyncio.gather(*(ask(chance.uniform(0.0, spread)) for _ in range(clients))))
