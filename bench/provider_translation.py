"""What a provider's stream costs: CPU a token of each way, on replayed bytes, alone and through a gateway.

Every way reads the same answer, an event a token and a read an event, in rounds of shuffled order: as
Anthropic's API streams it or as OpenAI's does. The limit is 60 µs of CPU a token, of the translation and of a
gateway's whole process, which serves many streams at once from a provider that replays. Beside ours stand the
least that any translation does (each event parsed and written by orjson), the same by the standard library,
and, with --peer naming the Python of an environment that has LiteLLM (make litellm-env), LiteLLM's reader of
the same events, without what its proxy does with them.

    python bench/provider_translation.py
    python bench/provider_translation.py --peer .venv-litellm/bin/python -o json
    python bench/provider_translation.py --quick

Exit code 1 when one of our ways is above the limit; a quick run, whose streams are too short for their
requests' share, is not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import aiohttp
import orjson
from gateway_rig import machine
from provider_streams import chunks, event, message, message_stream

from cloud.providers.kinds import wire_of
from cloud.sse import event_data
from orchestrator.gateway.asked import ask

LIMIT = 60.0  # µs of CPU a token
TOKENS = 300
STREAMS = 50  # at once, through the gateway
GAP = 0.01  # s between the events of one
ROUNDS = 5
ROOT = Path(__file__).resolve().parent.parent
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = " token"
HI = [{"role": "user", "content": "x" * 400}]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def message_events(tokens: int) -> list[bytes]:
    """The stream of a message with a text of so many tokens, a delta each."""
    first, *_, stop, delta, last = message_stream(message([{"type": "text", "text": ""}]))
    start = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    text = event("content_block_delta", index=0, delta={"type": "text_delta", "text": WORD})
    return [first, start, *[text] * tokens, stop, delta, last]


def chat_events(tokens: int) -> list[bytes]:
    """The chat stream of the same text."""
    told = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
    return chunks([WORD] * tokens, usage=told)


def ways(tokens: int) -> dict[str, Callable[[], int]]:
    """Each way: reads the whole stream once, and returns how many bytes the client gets."""
    told, said = message_events(tokens), chat_events(tokens)
    claude = wire_of("anthropic", "http://provider")
    other = wire_of("openai", "http://provider")
    inner = {"model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    chat = claude.request(inner, model="m", key="", stream=True, created=1).reader
    raw = json.dumps({"model": "m", "max_tokens": tokens, "stream": True, "messages": HI}).encode()
    asked = ask("POST", MESSAGES, "application/json", raw)
    kept = claude.native(raw, model="m", key="", stream=True, path=MESSAGES, headers={}).reader
    same = other.native(raw, model="m", key="", stream=True, path=CHAT, headers={}).reader

    def relayed(reader: Any, events: list[bytes]) -> int:
        relay = reader.relay()
        size = sum([len(relay.feed(data)) for data in events]) + len(relay.end())
        if not relay.whole or relay.usage is None:
            raise SystemExit(f"the replayed stream is not read: {relay.error}")
        return size

    def to_messages() -> int:
        relay, edge = same.relay(), asked.dialect.edge(asked)
        return sum([len(edge.feed(relay.feed(data))) for data in said]) + len(edge.closing())

    def each(events: list[bytes], load: Callable[[bytes], Any], dump: Callable[[Any], Any]) -> int:
        found = [event_data(data) for data in events]
        return sum([len(dump(load(data))) for data in found if data != b"[DONE]"])

    return {
        "anthropic provider, OpenAI client": lambda: relayed(chat, told),
        "openai provider, Anthropic client": to_messages,
        "anthropic provider, Anthropic client": lambda: relayed(kept, told),
        "openai provider, OpenAI client": lambda: relayed(same, said),
        "parsed and written, orjson": lambda: each(told, orjson.loads, orjson.dumps),
        "parsed and written, json": lambda: each(told, json.loads, json.dumps),
    }


COMPARED = ("parsed and written, orjson", "parsed and written, json")  # not held to the limit


def measured(tokens: int, rounds: int, rng: random.Random) -> dict[str, list[float]]:
    """CPU in µs a token, a figure for each round."""
    all_ways = ways(tokens)
    found: dict[str, list[float]] = {name: [] for name in all_ways}
    for _ in range(rounds):
        order = list(all_ways)
        rng.shuffle(order)
        for name in order:
            began = time.process_time()
            all_ways[name]()
            found[name].append((time.process_time() - began) / tokens * 1e6)
    return found


PEER = """
import json, sys, time
from litellm.llms.anthropic.chat.handler import ModelResponseIterator
events = [e for e in sys.stdin.buffer.read().split(b"\\n\\n") if e]
tokens, rounds = int(sys.argv[1]), int(sys.argv[2])
lines = [line for e in events for line in e.decode().splitlines()]
found = []
for _ in range(rounds):
    began = time.process_time()
    reader = ModelResponseIterator(streaming_response=iter(lines), sync_stream=True)
    size = sum(len(json.dumps(chunk, default=lambda part: part.model_dump())) for chunk in reader)
    found.append((time.process_time() - began) / tokens * 1e6)
print(json.dumps(found))
"""


def peer(python: str, tokens: int, rounds: int) -> list[float]:
    """LiteLLM's figures."""
    done = subprocess.run(
        [python, "-c", PEER, str(tokens), str(rounds)],
        input=b"".join(message_events(tokens)),
        capture_output=True,
        check=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Replay(asyncio.Protocol):
    """A provider of both forms that does as little as can be between two events, at its pace."""

    streams: dict[bytes, list[bytes]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what asyncio hands to servers
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.buffer += data
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        at = head.lower().find(b"content-length:")
        if blank and at >= 0 and len(rest) >= int(head[at + 15 :].split(b"\r\n", 1)[0]):
            path, self.buffer = head.split(b" ", 2)[1], b""
            self.task = asyncio.ensure_future(self.stream(self.streams[path]))

    async def stream(self, events: list[bytes]) -> None:
        """Send one stream; chunked, so that the connection is kept."""
        self.transport.write(STREAM_HEAD)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for each in events:
            due += GAP
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            self.transport.write(b"%x\r\n%s\r\n" % (len(each), each))
        self.transport.write(b"0\r\n\r\n")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def settings(directory: str, port: int, provider: int) -> str:
    """The configuration of a gateway with two providers, one of each kind, at one address."""
    text = f'[daemon]\nstate_dir = "{directory}"\n[gateway]\nlisten = "127.0.0.1:{port}"\n'
    for kind in ("anthropic", "openai"):
        text += f'[provider.{kind}]\nkind = "{kind}"\nurl = "http://127.0.0.1:{provider}"\nin_flight = 1000\n'
        text += f'[provider.{kind}.price.m]\ninput = "3"\noutput = "15"\nmost_output = 4000\n'
        text += f'[[route]]\nmodels = ["{kind}"]\nto = [{{ provider = "{kind}", model = "m" }}]\n'
    return text


@contextlib.asynccontextmanager
async def gateway(provider: int) -> AsyncIterator[tuple[str, int]]:
    """A gateway's URL and process id."""
    with tempfile.TemporaryDirectory() as directory:
        port, file = free_port(), Path(directory) / "gateway.toml"
        file.write_text(settings(directory, port, provider))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", "gateway", "--config", str(file)),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60), aiohttp.ClientSession() as session:
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(f"http://127.0.0.1:{port}/v1/models"):
                            break
                    await asyncio.sleep(0.1)
            yield f"http://127.0.0.1:{port}", child.pid
        finally:
            child.kill()
            await child.wait()


def cpu_seconds(pid: int) -> float:
    """Time that a process's threads have had a processor so far."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


async def through(tokens: int, streams: int, rounds: int, rng: random.Random) -> dict[str, list[float]]:
    """The gateway's CPU in µs a token, requests included, a figure for each round of streams."""
    Replay.streams = {MESSAGES.encode(): message_events(tokens), CHAT.encode(): chat_events(tokens)}
    server = await asyncio.get_running_loop().create_server(Replay, "127.0.0.1", 0, backlog=4096)
    clients = {"OpenAI": CHAT, "Anthropic": MESSAGES}
    order = [(kind, client) for kind in ("anthropic", "openai") for client in clients]
    found: dict[str, list[float]] = {
        f"gateway: {kind} provider, {client} client": [] for kind, client in order
    }
    provider = server.sockets[0].getsockname()[1]
    connector = aiohttp.TCPConnector(limit=0)
    async with gateway(provider) as (url, pid), aiohttp.ClientSession(connector=connector) as session:

        async def ask(path: str, model: str) -> None:
            fields = {"model": model, "max_tokens": tokens, "stream": True, "messages": HI}
            async with session.post(url + path, json=fields) as answer:
                body = await answer.read()
            if answer.status != 200 or body.count(WORD.encode()) != tokens:
                raise SystemExit(f"the gateway answered {answer.status}: {body[:200]!r}")

        for number in range(rounds + 1):
            rng.shuffle(order)
            for kind, client in order:
                began = cpu_seconds(pid)
                await asyncio.gather(*(ask(clients[client], kind) for _ in range(streams)))
                if number:  # the first round opens the connections
                    spent = (cpu_seconds(pid) - began) / (tokens * streams) * 1e6
                    found[f"gateway: {kind} provider, {client} client"].append(spent)
    server.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of the stream")
    parser.add_argument("--streams", type=int, default=STREAMS, help="at once through the gateway")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peer", default="", metavar="PYTHON", help="of an environment that has LiteLLM")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a moment: few and short streams")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    tokens, streams, rounds = options.tokens, options.streams, options.rounds
    if options.quick:
        tokens, streams, rounds = 100, 20, 2
    rng = random.Random(options.seed)
    found = measured(tokens, rounds, rng)
    found |= asyncio.run(through(tokens, streams, rounds, rng))
    held = [name for name in found if name not in COMPARED]
    if options.peer:
        found["LiteLLM's reader, anthropic to chat"] = peer(options.peer, tokens, rounds)
    medians = {name: statistics.median(figures) for name, figures in found.items()}
    missed = [name for name in held if medians[name] > LIMIT and not options.quick]
    if options.output == "json":
        print(json.dumps({"limit_us": LIMIT, "tokens": tokens, "us_a_token": medians, "machine": machine()}))
    else:
        print(f"CPU a token, median of {rounds} rounds of {tokens} tokens, limit {LIMIT:.0f} µs; {machine()}")
        for name, figures in found.items():
            print(f"  {name:45} {medians[name]:7.1f} µs   ({min(figures):.1f} to {max(figures):.1f})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
