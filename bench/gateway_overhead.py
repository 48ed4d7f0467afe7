"""What the gateway costs: requests and streamed tokens through it against the same ones sent directly.

Starts an engine stand-in and a gateway as processes of their own and loads both from this one, in rounds of
shuffled order, so that a busy machine disturbs both alike. Wall-clock rates are good as ratios inside a
round; the CPU time per request and per token, read from the gateway process itself, is the number to trust.

The stand-in tells token ids where they are asked for, and passes what is not load on to a simulated engine:
the gateway finds a node whose streams can be continued, and records what that takes. With --against a second
gateway, of the code of another commit, takes part in the same rounds. The ratio of the two is the median of
the rounds' ratios; neither may be above 1.1. With --tls one that speaks HTTPS takes part. What is used is
counted in a file, by this tree's gateways.

    python bench/gateway_overhead.py
    python bench/gateway_overhead.py --against HEAD~1 --seconds 60 -o json
    python bench/gateway_overhead.py --tls
    python bench/gateway_overhead.py --quick

Exit code 1 when a ratio is above 1.1, or when the gateway would not have continued the streams.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import ssl
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from certificates import pair
from gateway_rig import MODEL, GatewayRig, machine, progress, quantile, reference

from policies.model import TargetSpec

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 32  # keep-alive connections that ask for plain answers
STREAMS = 100  # streams at the same time
TOKENS = 100  # per stream
GAP = 0.01  # s between the tokens of a stream
ROUNDS = 6
PHASES = 2  # plain and streaming
LIMIT = 1.1  # CPU, as a multiple of the other commit's
PROMPT = "x" * 400

PLAIN = (
    b'{"id":"cmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"'
    + b"y" * 120
    + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}'
)
_HEAD = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"simulated","choices":[{"index":0,"delta":'
)
_ROLE = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":%s}\n\n'
_TOKEN = b'{"content":" token"},"logprobs":null,"finish_reason":null,"token_ids":%s}]}\n\n'
_LAST = b'{"content":" last"},"logprobs":null,"finish_reason":"length","token_ids":%s}]}\n\n'
_END = b"data: [DONE]\n\n"
_USED = (
    _HEAD[: _HEAD.index(b'{"index')] + b'],"usage":{"prompt_tokens":200,"total_tokens":301,'
    b'"completion_tokens":101,"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
)
ROLE, TOKEN, LAST = (
    {ids: _HEAD + rest % told for ids, told in ((False, b"null"), (True, given))}
    for rest, given in (
        (_ROLE, str(list(range(256, 456))).encode()),
        (_TOKEN, b"[65800]"),
        (_LAST, b"[65800]"),
    )
)
"""The events of a stream without and with token ids."""
ENDS = {False: _END, True: _USED + _END}
"""Its end without and with the usage."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "


class EngineProtocol(asyncio.Protocol):
    """A server that does as little as can be between two bytes. `other` answers what is not load."""

    def __init__(self, other: str) -> None:
        self.other = other

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
            whole, self.buffer = self.buffer[: end + 4 + length], self.buffer[end + 4 + length :]
            if head.startswith(b"get /health "):
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            elif PROMPT.encode() not in whole:
                self.task = asyncio.ensure_future(self.pass_on(whole, end))
            elif b'"stream":true' in whole:
                self.task = asyncio.ensure_future(self.stream(whole))
            else:
                length_line = b"\r\nContent-Length: %d\r\n\r\n" % len(PLAIN)
                self.transport.write(HEAD + b"application/json" + length_line + PLAIN)

    async def pass_on(self, request: bytes, end: int) -> None:
        """Have another engine answer, and end the connection with its answer."""
        host, _, port = self.other.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request[:end] + b"\r\nConnection: close" + request[end:])
        self.transport.write(await reader.read())
        self.transport.close()
        writer.close()

    async def stream(self, request: bytes) -> None:
        """Send one stream at its pace, with token ids and usage where they are asked for."""
        self.transport.write(HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        loop = asyncio.get_running_loop()
        due = loop.time()
        ids = b'"return_token_ids":true' in request
        first, last = ROLE[ids] + TOKEN[ids], LAST[ids] + ENDS[b'"include_usage":true' in request]
        for number in range(TOKENS):
            due += GAP
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not self.open:
                return
            events = TOKEN[ids] if number else first
            self.transport.write(b"%x\r\n%s\r\n" % (len(events), events))
        self.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))


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
        self.tokens += data.count(b'" token"')
        self.tail = (self.tail + data)[-max(len(self.end), 16) :]
        if self.tail.endswith(self.end) and self.done is not None and not self.done.done():
            self.done.set_result(None)


@dataclass
class Measured:
    """One way (direct or through a gateway), all its rounds together; CPU in seconds a round."""

    requests: int = 0
    request_seconds: float = 0.0
    request_cpu: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    token_seconds: float = 0.0
    token_cpu: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)


async def serve_engine(other: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EngineProtocol(other), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the parent


def request_bytes(stream: bool) -> bytes:
    body = json.dumps(
        {
            "model": MODEL,
            "stream": stream,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 400,
        },
        separators=(",", ":"),
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Way:
    """Where to ask; `pid` is the gateway's process, 0 for none, `tls` what its clients trust."""

    port: int
    pid: int = 0
    tls: ssl.SSLContext | None = None
    rig: GatewayRig | None = None

    async def connect(self) -> tuple[asyncio.Transport, ClientProtocol]:
        """A client."""
        loop = asyncio.get_running_loop()
        return await loop.create_connection(ClientProtocol, "127.0.0.1", self.port, ssl=self.tls)


async def plain_load(way: Way, seconds: float) -> list[float]:
    """Ask from all clients for so long; the latencies in seconds."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    request = request_bytes(stream=False)

    async def client() -> None:
        transport, protocol = await way.connect()
        while (start := time.perf_counter()) < until:
            await protocol.ask(request, PLAIN[-24:])
            latencies.append(time.perf_counter() - start)
        transport.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return latencies


async def stream_load(way: Way, seconds: float) -> tuple[int, list[float]]:
    """Keep all streams open for so long; tokens received and times to the first token."""
    until = time.perf_counter() + seconds
    request = request_bytes(stream=True)
    tokens, firsts = 0, []

    async def client(delay: float) -> None:
        nonlocal tokens
        await asyncio.sleep(delay)
        transport, protocol = await way.connect()
        while (start := time.perf_counter()) < until:
            await protocol.ask(request, b"0\r\n\r\n")
            tokens += protocol.tokens
            firsts.append(protocol.first - start)
        transport.close()

    await asyncio.gather(*(client(0.3 * number / STREAMS) for number in range(STREAMS)))
    return tokens, firsts


def cpu_seconds(pid: int) -> float:
    """Time that a process's threads have had a processor so far; nothing for process 0."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat") if pid else ()
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextlib.asynccontextmanager
async def engine(other: str) -> AsyncIterator[int]:
    """The stand-in's port."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        *("--serve", other),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield int(await asyncio.wait_for(cast("asyncio.StreamReader", child.stdout).readline(), 20))
    finally:
        child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def gateway(directory: Path, code: Path, engine_port: int, *, tls: bool = False) -> AsyncIterator[Way]:
    """A gateway of this code that holds the stand-in for healthy, and would continue its streams."""
    directory.mkdir()  # noqa: ASYNC240 - before anything is measured
    settings, trust = {"usage_file": str(directory / "usage.db")} if code == ROOT else {}, None
    if tls:
        made = pair(directory).write()
        settings = {"tls_cert_file": str(made.certificate), "tls_key_file": str(made.key)}
        trust = made.trust()
    rig = GatewayRig(directory, settings)
    try:
        await rig.start(environment={"PYTHONPATH": str(code)}, cwd=code)
        await rig.apply([TargetSpec(id="engine", address=f"127.0.0.1:{engine_port}")])
        yield Way(int(rig.url.rpartition(":")[2]), rig.pid, trust, rig)
    finally:
        await rig.close()


def code_of(commit: str, directory: Path) -> Path:
    """The packages as they were at a commit. Raises CalledProcessError for one that git does not know."""
    words = ("git", "archive", commit, "orchestrator", "cloud", "policies")
    packed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(directory, filter="data")
    return directory


async def measure(
    seconds: float, directory: Path, against: str | None, *, tls: bool
) -> tuple[dict[str, Measured], str]:
    """What each way cost, and how the gateway would continue the streams."""
    async with contextlib.AsyncExitStack() as ends:
        other = await ends.enter_async_context(reference(directory))
        engine_port = await ends.enter_async_context(engine(other))
        codes = {"gateway": ROOT}
        if against is not None:
            codes["before"] = code_of(against, directory / "code")
        if tls:
            codes["tls"] = ROOT
        ways = {"direct": Way(engine_port)}
        for name, code in codes.items():
            opened = gateway(directory / name, code, engine_port, tls=name == "tls")
            ways[name] = await ends.enter_async_context(opened)
        found = {name: Measured() for name in ways}
        for way in ways.values():
            await plain_load(way, 0.3)
        order = list(ways)
        for number in range(ROUNDS):
            progress(f"  round {number + 1} of {ROUNDS}")
            random.Random(number).shuffle(order)
            for name in order:
                await one_round(found[name], ways[name], seconds / (ROUNDS * PHASES * len(order)))
        rig = ways["gateway"].rig
        state = {} if rig is None else await rig.state()
    return found, str(state["targets"][0].get("continuation", {}).get("way", "none"))


async def one_round(found: Measured, way: Way, seconds: float) -> None:
    cpu, start = cpu_seconds(way.pid), time.perf_counter()
    latencies = await plain_load(way, seconds)
    found.request_seconds += time.perf_counter() - start
    found.request_cpu.append((cpu_seconds(way.pid) - cpu) / len(latencies))
    found.requests += len(latencies)
    found.latencies += latencies
    cpu, start = cpu_seconds(way.pid), time.perf_counter()
    tokens, firsts = await stream_load(way, seconds)
    found.token_seconds += time.perf_counter() - start
    found.token_cpu.append((cpu_seconds(way.pid) - cpu) / tokens)
    found.tokens += tokens
    found.first_tokens += firsts


def summary(ways: dict[str, Measured], continued: str) -> dict[str, Any]:
    rows: dict[str, Any] = {"machine": machine(), "continuation": continued}
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
            "cpu_us_per_request": round(statistics.median(way.request_cpu) * 1e6, 1),
            "cpu_us_per_token": round(statistics.median(way.token_cpu) * 1e6, 2),
        }
    direct, through = rows["direct"], rows["gateway"]
    for what in ("requests_per_second", "tokens_per_second"):
        rows[f"{what}_ratio"] = round(through[what] / direct[what], 3)
    if (before := ways.get("before")) is not None:
        now = ways["gateway"]
        rows["cpu_per_request_ratio"] = median_ratio(now.request_cpu, before.request_cpu)
        rows["cpu_per_token_ratio"] = median_ratio(now.token_cpu, before.token_cpu)
    if (secured := ways.get("tls")) is not None:
        plain = ways["gateway"]
        rows["tls_per_request_ratio"] = median_ratio(secured.request_cpu, plain.request_cpu)
        rows["tls_per_token_ratio"] = median_ratio(secured.token_cpu, plain.token_cpu)
    return rows


def median_ratio(now: list[float], before: list[float]) -> float:
    """The median of the ratios of each round."""
    return round(statistics.median(a / b for a, b in zip(now, before, strict=True)), 3)


def missed(rows: dict[str, Any]) -> list[str]:
    """What does not hold of what must."""
    ratios = [name for name in rows if name.startswith("cpu_per_")]
    found = [f"{name}: {rows[name]} is above {LIMIT}" for name in ratios if rows[name] > LIMIT]
    return found + ["no token ids were recorded"] * (bool(ratios) and rows["continuation"] == "none")


def table(rows: dict[str, Any]) -> str:
    ways = [name for name, row in rows.items() if isinstance(row, dict)]
    out = [f"{rows['machine']}; continuation: {rows['continuation']}"]
    out.append(f"{'':22}" + "".join(f"{way:>12}" for way in ways))
    out += [f"{name:22}" + "".join(f"{rows[way][name]:>12}" for way in ways) for name in rows["direct"]]
    return "\n".join([*out, *(f"{name:28}{rows[name]:>18}" for name in rows if name.endswith("_ratio"))])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="time of all rounds together")
    parser.add_argument("--against", metavar="COMMIT", help="measure the gateway of another commit too")
    parser.add_argument("--tls", action="store_true", help="measure a gateway that speaks HTTPS too")
    parser.add_argument("--quick", action="store_true", help="4 seconds: shows that it runs, judges nothing")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--serve", metavar="OTHER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_engine(options.serve))
        return 0
    with tempfile.TemporaryDirectory(prefix="gw") as directory:
        seconds = 4.0 if options.quick else options.seconds
        rows = summary(*asyncio.run(measure(seconds, Path(directory), options.against, tls=options.tls)))
    rows["missed"] = [] if options.quick else missed(rows)
    print(json.dumps(rows) if options.output == "json" else table(rows))
    return 1 if rows["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
