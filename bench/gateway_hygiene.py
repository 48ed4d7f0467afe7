"""What clients and engines that are no help cost the others: the gateway's latency, memory and descriptors.

A gateway with its default settings stands before two engine stand-ins. A few clients ask for plain answers
all the time, first alone, then while others do one of these, in turns:

    unread      clients that ask for large answers and do not read them
    half heads  connections that begin a request and never end its head
    half bodies connections that send half of a body and stop; who is refused comes again
    idle        connections that ask for nothing
    event       streams; one of the engines sends an event of 8 MiB without an end for each
    large heads heads of 63 KiB that are served, and of 65 KiB that are refused

Of the turns with and without, the 99th percentiles of those few clients are compared. The gateway's memory
and descriptors are read from /proc.

    python bench/gateway_hygiene.py
    python bench/gateway_hygiene.py --seconds 10 -o json
    python bench/gateway_hygiene.py --quick

Exit code 1 when a 99th percentile is above twice that without, when a request fails, when the memory grows by
more than a gigabyte, or when no descriptor is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from gateway_rig import GatewayRig, machine, progress, quantile

from policies.model import TargetSpec

KIB, MIB = 1024, 1024 * 1024
CLIENTS = 8  # of those who are measured
THINK = 0.01  # s between an answer and their next request
TURNS = 4  # with and without, for each kind
LIMIT = 2.0  # 99th percentile, as a multiple of the one without
GROWTH = 1024  # MiB
PLAIN = (
    b'{"object":"chat.completion","choices":[{"index":0,"message":{"content":"y"},"finish_reason":"stop"}]}'
)
STREAM = b'data: {"choices":[{"index":0,"delta":{"content":"y"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
LARGE = PLAIN.replace(b'"y"', b'"' + b"y" * MIB + b'"')
OK = b"HTTP/1.1 200 OK\r\nContent-Type: "
HOST = b"Host: localhost\r\n"
HEALTH = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def post(body: bytes, more: bytes = b"") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + more
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


ASK = post(b'{"messages":[],"user":"one of us"}')


# -- the engine --------------------------------------------------------------------------------------


async def serve(faulty: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as the body asks; streams of a faulty one are an event without an end."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"content-length:")
            body = await reader.readexactly(int(rest.split(b"\r\n", 1)[0])) if found else b""
            if b" /health " in head:
                writer.write(HEALTH)
            elif b'"stream":true' in body:
                writer.write(OK + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                piece = b"10000\r\n" + b"x" * 64 * KIB + b"\r\n"
                for number in range(128 if faulty else 0):
                    writer.write(piece if number else b"10006\r\ndata: " + piece[7:])
                    await writer.drain()
                if not faulty:
                    writer.write(b"%x\r\n%s\r\n" % (len(STREAM), STREAM))
                writer.write(b"0\r\n\r\n")
            else:
                answer = LARGE if b'"large"' in body else PLAIN
                writer.write(OK + b"application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
    writer.close()


async def serve_engine(faulty: bool) -> None:
    server = await asyncio.start_server(partial(serve, faulty), "127.0.0.1", 0, limit=MIB, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the parent


# -- who is no help ----------------------------------------------------------------------------------


async def connect(port: int, buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock, limit=64 * KIB)


async def hold(port: int, said: bytes) -> None:
    """Say something, then nothing; when the connection ends, do so again."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await connect(port)
            writer.write(said)
            while await reader.read(4096):
                pass
            writer.close()
        await asyncio.sleep(1.0)


async def unread(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await connect(port, buffer=4096)
            cast("asyncio.Transport", writer.transport).pause_reading()
            writer.write(post(b'{"messages":[],"user":"large"}'))
            await asyncio.sleep(20.0)
            writer.close()
            del reader


def large_head(size: int) -> bytes:
    head = b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n" + HOST
    return head + b"X-Long: " + b"x" * (size - len(head) - 12) + b"\r\n\r\n"


Kind = Callable[[int], Awaitable[None]]
HALF_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
HALF_BODY = HALF_HEAD + b"Content-Length: 1048576\r\n\r\n" + b"x" * 64 * KIB
KINDS: dict[str, tuple[int, Kind]] = {
    "unread": (200, unread),
    "half heads": (1000, lambda port: hold(port, HALF_HEAD)),
    "half bodies": (1000, lambda port: hold(port, HALF_BODY)),
    "idle": (10_000, lambda port: hold(port, b"")),
    "event": (2, lambda port: stream(port)),
    "large heads": (20, lambda port: heads(port)),
}


async def stream(port: int) -> None:
    """Ask for streams."""
    await again_and_again(port, post(b'{"messages":[],"stream":true}', b"Connection: close\r\n"))


async def heads(port: int) -> None:
    """Heads below and above the limit."""
    await asyncio.gather(
        again_and_again(port, large_head(63 * KIB)), again_and_again(port, large_head(65 * KIB))
    )


async def again_and_again(port: int, said: bytes) -> None:
    """Ask the same, each time on a new connection."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await connect(port)
            writer.write(said)
            while await reader.read(64 * KIB):
                pass
            writer.close()
        await asyncio.sleep(0.5)


async def be_no_help(kind: str, count: int, port: int) -> None:
    """Do it with so many until the parent ends."""
    made = KINDS[kind][1]
    tasks = []
    for number in range(count):
        tasks.append(asyncio.ensure_future(made(port)))
        if number % max(1, count // 100) == 0:
            await asyncio.sleep(0.03)
    await asyncio.sleep(0.5)
    print("all there", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()


# -- what is measured --------------------------------------------------------------------------------


@dataclass
class Found:
    """The others' latencies in seconds without and with one kind, and the gateway's highest marks."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    failed: int = 0
    memory: float = 0.0  # MiB above the start
    descriptors: int = 0


async def others(port: int, seconds: float, found: Found, into: list[float]) -> None:
    """Ask for so long from all clients."""
    until = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < until:
            try:
                writer.write(ASK)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(PLAIN))
            except (OSError, asyncio.IncompleteReadError):
                head = b""
            if head.startswith(b"HTTP/1.1 200 "):
                into.append(time.perf_counter() - start)
            else:
                found.failed += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(THINK)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


@contextlib.asynccontextmanager
async def child(*words: str) -> AsyncIterator[str]:
    """This script in another process, and the first line it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        line = await asyncio.wait_for(cast("asyncio.StreamReader", process.stdout).readline(), 120)
        yield line.decode().strip()
    finally:
        process.kill()
        await process.wait()


def memory(pid: int) -> float:
    """MiB that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def watch(pid: int, before: float, found: Found) -> None:
    """Note the highest marks."""
    while True:
        found.memory = max(found.memory, memory(pid) - before)
        found.descriptors = max(found.descriptors, len(list(Path(f"/proc/{pid}/fd").iterdir())))  # noqa: ASYNC240
        await asyncio.sleep(0.2)


async def measure(
    kinds: list[str], seconds: float, share: float, turns: int, directory: Path
) -> dict[str, Found]:
    """Each kind in turns of so many seconds, with this share of its number."""
    rows: dict[str, Found] = {}
    rig = GatewayRig(directory)
    async with child("--serve", "sound") as sound, child("--serve", "faulty") as faulty:
        try:
            await rig.start()
            ports = {"sound": sound, "faulty": faulty}
            await rig.apply([TargetSpec(id=name, address=f"127.0.0.1:{p}") for name, p in ports.items()])
            port = int(rig.url.rpartition(":")[2])
            await others(port, min(1.0, seconds), Found(), [])
            before = memory(rig.pid)
            for kind in kinds:
                found = rows[kind] = Found()
                number = max(1, round(KINDS[kind][0] * share))
                progress(f"  {kind}: {number}")
                for _ in range(turns):
                    await others(port, seconds, found, found.alone)
                    async with child("--be", kind, str(number), str(port)):
                        watching = asyncio.create_task(watch(rig.pid, before, found))
                        await others(port, seconds, found, found.beside)
                        watching.cancel()
                    await asyncio.sleep(0.5)
        finally:
            await rig.close()
    return rows


def summary(rows: dict[str, Found], share: float) -> dict[str, Any]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    out: dict[str, Any] = {"machine": machine(), "descriptors_may": limit, "kinds": {}}
    for kind, found in rows.items():
        alone, beside = quantile(found.alone, 0.99), quantile(found.beside, 0.99)
        out["kinds"][kind] = {
            "number": max(1, round(KINDS[kind][0] * share)),
            "requests": len(found.alone) + len(found.beside),
            "failed": found.failed,
            "p50_ms_alone": round(quantile(found.alone, 0.5) * 1e3, 1),
            "p50_ms": round(quantile(found.beside, 0.5) * 1e3, 1),
            "p99_ms_alone": round(alone * 1e3, 1),
            "p99_ms": round(beside * 1e3, 1),
            "p99_ratio": round(beside / alone, 2),
            "memory_mib": round(found.memory),
            "descriptors": found.descriptors,
        }
    return out


def missed(result: dict[str, Any]) -> list[str]:
    """What does not hold of what must."""
    out = []
    for kind, row in result["kinds"].items():
        if row["p99_ratio"] > LIMIT:
            out.append(f"{kind}: the others' 99th percentile is {row['p99_ratio']} times that without")
        if row["failed"]:
            out.append(f"{kind}: {row['failed']} requests of others failed")
        if row["memory_mib"] > GROWTH:
            out.append(f"{kind}: {row['memory_mib']} MiB more")
        if row["descriptors"] >= result["descriptors_may"]:
            out.append(f"{kind}: no descriptor is left")
    return out


def table(result: dict[str, Any]) -> str:
    names = list(next(iter(result["kinds"].values())))
    lines = [f"{result['machine']}; {result['descriptors_may']} descriptors"]
    lines.append(f"{'':12}" + "".join(f"{name:>14}" for name in names))
    for kind, row in result["kinds"].items():
        lines.append(f"{kind:12}" + "".join(f"{row[name]:>14}" for name in names))
    return "\n".join([*lines, *result["missed"]])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only these")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of one turn")
    parser.add_argument(
        "--quick", action="store_true", help="a hundredth: shows that it runs, judges nothing"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--serve", choices=("sound", "faulty"), help=argparse.SUPPRESS)
    parser.add_argument("--be", nargs=3, metavar=("KIND", "NUMBER", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve or options.be:
        if options.serve:
            asyncio.run(serve_engine(options.serve == "faulty"))
        else:
            asyncio.run(be_no_help(options.be[0], *map(int, options.be[1:])))
        return 0
    seconds, share, turns = (0.2, 0.01, 1) if options.quick else (options.seconds, 1.0, TURNS)
    with tempfile.TemporaryDirectory(prefix="gw") as directory:
        result = summary(asyncio.run(measure(options.kinds, seconds, share, turns, Path(directory))), share)
    result["missed"] = [] if options.quick else missed(result)
    print(json.dumps(result) if options.output == "json" else table(result))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
