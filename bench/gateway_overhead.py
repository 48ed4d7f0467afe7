"""What the gateway costs: requests and streamed tokens through it against the same ones sent directly.

Starts an engine stand-in and a gateway as processes of their own and loads both from this one, in rounds that
take turns, so that a busy machine disturbs both alike. Wall-clock rates are good as ratios inside a round;
the CPU time per request and per token, read from the gateway process itself, is the number to trust.

    python bench/gateway_overhead.py [--seconds 20] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp

from cloud.balancers.gateway import GatewayBalancer
from cloud.clock import SystemClock
from cloud.errors import Uncertain
from policies.model import TargetSpec

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 32  # keep-alive connections that ask for plain answers
STREAMS = 100  # streams at the same time
TOKENS = 100  # per stream
GAP = 0.01  # s between the tokens of a stream
PHASES = 4  # plain and streaming, direct and through the gateway

PLAIN = (
    b'{"id":"cmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"'
    + b"x" * 120
    + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}'
)
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"m","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,'
    b'"finish_reason":null,"token_ids":null}]}\n\n'
)
LAST = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "


class EngineProtocol(asyncio.Protocol):
    """A server that does as little as can be between two bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport = cast("asyncio.Transport", transport)
        self.buffer = b""
        self.open = True

    def connection_lost(self, _: Exception | None) -> None:  # noqa: D102
        self.open = False

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            if b'"stream":true' in body:
                self.task = asyncio.ensure_future(self.stream())
            else:
                length_line = b"\r\nContent-Length: %d\r\n\r\n" % len(PLAIN)
                self.transport.write(HEAD + b"application/json" + length_line + PLAIN)

    async def stream(self) -> None:
        """Send one stream at its pace."""
        self.transport.write(HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        loop = asyncio.get_running_loop()
        due = loop.time()
        for _ in range(TOKENS):
            due += GAP
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not self.open:
                return
            self.transport.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
        self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LAST), LAST))


class ClientProtocol(asyncio.Protocol):
    """A client of one connection: sends a request, notices the end of the answer, counts its tokens."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport = cast("asyncio.Transport", transport)
        self.done: asyncio.Future[None] | None = None

    def connection_lost(self, _: Exception | None) -> None:  # noqa: D102
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("the connection ended before the answer"))

    def ask(self, request: bytes, end: bytes) -> asyncio.Future[None]:
        """Send a request; the future is done once the answer's last bytes are here."""
        self.end, self.tail, self.tokens, self.first = end, b"", 0, 0.0
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if not self.first and b"data: " in data:
            self.first = time.perf_counter()
        self.tokens += data.count(b"token_ids")
        self.tail = (self.tail + data)[-max(len(self.end), 16) :]
        if self.tail.endswith(self.end) and self.done is not None and not self.done.done():
            self.done.set_result(None)


@dataclass
class Measured:
    """One way (direct or through the gateway), all its rounds together."""

    requests: int = 0
    request_seconds: float = 0.0
    request_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    token_seconds: float = 0.0
    token_cpu: float = 0.0
    first_tokens: list[float] = field(default_factory=list)


async def serve_engine() -> None:
    server = await asyncio.get_running_loop().create_server(EngineProtocol, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the parent


def request_bytes(stream: bool) -> bytes:
    body = json.dumps(
        {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x" * 400}]},
        separators=(",", ":"),
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def plain_load(port: int, seconds: float) -> list[float]:
    """Ask from all clients for so long; the latencies in seconds."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    request = request_bytes(stream=False)

    async def client() -> None:
        transport, protocol = await loop.create_connection(ClientProtocol, "127.0.0.1", port)
        while (start := time.perf_counter()) < until:
            await protocol.ask(request, PLAIN[-24:])
            latencies.append(time.perf_counter() - start)
        transport.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return latencies


async def stream_load(port: int, seconds: float) -> tuple[int, list[float]]:
    """Keep all streams open for so long; tokens received and times to the first token."""
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    request = request_bytes(stream=True)
    tokens, firsts = 0, []

    async def client(delay: float) -> None:
        nonlocal tokens
        await asyncio.sleep(delay)
        transport, protocol = await loop.create_connection(ClientProtocol, "127.0.0.1", port)
        while (start := time.perf_counter()) < until:
            await protocol.ask(request, b"0\r\n\r\n")
            tokens += protocol.tokens
            firsts.append(protocol.first - start)
        transport.close()

    await asyncio.gather(*(client(0.3 * number / STREAMS) for number in range(STREAMS)))
    return tokens, firsts


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def process(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def gateway_port(directory: Path, engine_port: int) -> tuple[GatewayBalancer, int]:
    """Attach the engine to the gateway; where the gateway listens."""
    balancer = GatewayBalancer(
        socket=directory / "gw.sock",
        targets_file=directory / "targets.json",
        pool="bench",
        clock=SystemClock(),
    )
    async with asyncio.timeout(20):
        while True:
            try:
                await balancer.apply([TargetSpec(id="engine", address=f"127.0.0.1:{engine_port}")], 1)
                break
            except Uncertain:
                await asyncio.sleep(0.05)
    connector = aiohttp.UnixConnector(str(directory / "gw.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://gateway/v1/state") as answer,
    ):
        return balancer, int((await answer.json())["listen"].rpartition(":")[2])


async def measure(seconds: float, directory: Path) -> dict[str, Measured]:
    ways = {way: Measured() for way in ("direct", "gateway")}
    settings = {
        "targets_file": str(directory / "targets.json"),
        "socket": str(directory / "gw.sock"),
        "port": 0,
    }
    async with (
        process(__file__, "--serve") as engine,
        process("-m", "orchestrator.gateway", json.dumps(settings)) as gateway,
    ):
        engine_port = int(await asyncio.wait_for(cast("asyncio.StreamReader", engine.stdout).readline(), 20))
        balancer, port = await gateway_port(directory, engine_port)
        rounds = 2
        slice_ = seconds / (rounds * PHASES)
        for way_port in (engine_port, port):
            await plain_load(way_port, 0.3)
        for _ in range(rounds):
            for way, way_port in (("direct", engine_port), ("gateway", port)):
                await one_round(ways[way], way_port, gateway.pid, slice_)
        await balancer.close()
    return ways


async def one_round(way: Measured, port: int, pid: int, seconds: float) -> None:
    cpu, start = cpu_seconds(pid), time.perf_counter()
    latencies = await plain_load(port, seconds)
    way.request_seconds += time.perf_counter() - start
    way.request_cpu += cpu_seconds(pid) - cpu
    way.requests += len(latencies)
    way.latencies += latencies
    cpu, start = cpu_seconds(pid), time.perf_counter()
    tokens, firsts = await stream_load(port, seconds)
    way.token_seconds += time.perf_counter() - start
    way.token_cpu += cpu_seconds(pid) - cpu
    way.tokens += tokens
    way.first_tokens += firsts


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000)[int(share * 1000) - 1] if len(values) > 1 else float("nan")


def summary(ways: dict[str, Measured]) -> dict[str, Any]:
    direct, through = ways["direct"], ways["gateway"]
    rows: dict[str, Any] = {"machine": machine()}
    for name, way in ways.items():
        rows[name] = {
            "requests": way.requests,
            "requests_per_second": round(way.requests / way.request_seconds, 1),
            "latency_ms_p50": round(quantile(way.latencies, 0.5) * 1e3, 2),
            "latency_ms_p99": round(quantile(way.latencies, 0.99) * 1e3, 2),
            "tokens": way.tokens,
            "tokens_per_second": round(way.tokens / way.token_seconds, 1),
            "first_token_ms_p50": round(quantile(way.first_tokens, 0.5) * 1e3, 2),
            "first_token_ms_p99": round(quantile(way.first_tokens, 0.99) * 1e3, 2),
        }
    rows["cpu_us_per_request"] = round(through.request_cpu / through.requests * 1e6, 1)
    rows["cpu_us_per_token"] = round(through.token_cpu / through.tokens * 1e6, 2)
    rows["requests_per_second_ratio"] = round(
        (through.requests / through.request_seconds) / (direct.requests / direct.request_seconds), 3
    )
    rows["tokens_per_second_ratio"] = round(
        (through.tokens / through.token_seconds) / (direct.tokens / direct.token_seconds), 3
    )
    return rows


def machine() -> str:
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


def table(rows: dict[str, Any]) -> str:
    direct, through = rows["direct"], rows["gateway"]
    out = [str(rows["machine"]), f"{'':22}{'direct':>12}{'gateway':>12}"]
    out += [f"{name:22}{direct[name]:>12}{through[name]:>12}" for name in direct]
    names = ("cpu_us_per_request", "cpu_us_per_token", "requests_per_second_ratio", "tokens_per_second_ratio")
    out += [f"{name:28}{rows[name]:>18}" for name in names]
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time of all rounds together")
    parser.add_argument("--quick", action="store_true", help="2 seconds: shows that it runs, measures little")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_engine())
        return 0
    with tempfile.TemporaryDirectory(prefix="gw") as directory:
        rows = summary(asyncio.run(measure(2.0 if options.quick else options.seconds, Path(directory))))
    print(json.dumps(rows) if options.output == "json" else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
