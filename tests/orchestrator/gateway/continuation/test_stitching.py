"""A stream that is cut anywhere, once or twice, comes out as if uncut, with the simulated engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
from multidict import CIMultiDict

from cloud.sse import Splitter, event_data, split_events
from orchestrator.gateway.asked import Asked, ask
from orchestrator.gateway.continuation import (
    Capability,
    Continuation,
    Transcript,
    Way,
    plan_of,
    prepared,
    probe,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

PATIENCE = 60.0  # s
PARSERS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
IDS = "--enable-scale-out"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = 'f {"a": [1, 2], "b": "Köln"}'


@dataclass
class Told:
    """What a client makes of a stream. `heads` are the fields that all chunks share."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    stop: Any = None
    usage: Any = None
    roles: int = 0
    ids: list[int] = field(default_factory=list)
    tokens: int = 0
    heads: set[Any] = field(default_factory=set, compare=False)

    def take(self, event: bytes) -> None:
        chunk = orjson.loads(event_data(event))
        self.heads.add(tuple(chunk.get(name) for name in ("id", "object", "created", "model")))
        if chunk.get("usage"):
            self.usage = {name: value for name, value in chunk["usage"].items() if isinstance(value, int)}
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {"content": choice.get("text")}
            self.text += delta.get("content") or ""
            self.reasoning += delta.get("reasoning") or ""
            self.roles += "role" in delta
            self.finish = choice["finish_reason"] or self.finish
            self.stop = choice.get("stop_reason") or self.stop
            self.ids += choice.get("token_ids") or []
            logprobs = choice.get("logprobs") or {}
            self.tokens += len(logprobs.get("content") or logprobs.get("tokens") or ())
            for call in delta.get("tool_calls") or ():
                while len(self.calls) <= call["index"]:
                    self.calls.append(["", ""])
                for at, name in enumerate(("name", "arguments")):
                    self.calls[call["index"]][at] += call["function"].get(name) or ""


def chat(content: str, **fields: Any) -> Asked:
    return asked("/v1/chat/completions", messages=[{"role": "user", "content": content}], **fields)


def asked(path: str, **fields: Any) -> Asked:
    usage = {"include_usage": True}
    body = {"model": "tiny", "max_tokens": 40, "temperature": 0, "stream": True, "stream_options": usage}
    return ask("POST", path, "application/json", orjson.dumps(body | fields))


CASES = {
    "chat": chat("hi"),
    "usage in each chunk": chat("hi", stream_options={"include_usage": True, "continuous_usage_stats": True}),
    "no limit": chat("!say 30", max_tokens=None),
    "adapter": chat("hi", model="la"),
    "text": asked("/v1/completions", prompt="spot"),
    "text of ids": asked("/v1/completions", prompt=[300, 301]),
    "default limit of a text": asked("/v1/completions", prompt="nodes", max_tokens=16),
    "ids for the client": asked("/v1/completions", prompt="spot", return_token_ids=True),
    "logprobs": asked("/v1/completions", prompt="spot", logprobs=0),
    "stop string": chat("hi", stop=["th ", "ll w"]),
    "stop string that never comes": chat("hi there", stop="never comes"),
    "stop string that is shown": chat("hi", stop=["th ", "ll w"], include_stop_str_in_output=True),
    "tool call": chat(f"!say 5\n!call {CALL}", tools=TOOLS, max_tokens=150),
    "two calls": chat(f"!call {CALL}\n!call {CALL}", tools=TOOLS, max_tokens=150),
    "call cut by the limit": chat(f"!say 5\n!call {CALL}", tools=TOOLS, max_tokens=14),
}
THINKING = {
    "reasoning": chat("!think 12\n!say 8"),
    "reasoning, then a call": chat(f"!think 6\n!say 3\n!call {CALL}", tools=TOOLS, max_tokens=150),
    "reasoning to the limit": chat("!think 50"),
}


async def start(*flags: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cloud.engines.simulated_server", "--model", "none", "--served-model-name", "tiny"),
        *("--port", "0", "--tokens-per-second", "2000", "--time-to-first-token", "0"),
        *("--lora-modules", "la=la", *flags),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        async for raw in process.stderr:
            if "ready on" in (line := raw.decode().strip()):
                return process, line.rpartition(" ")[2]
    raise AssertionError("the engine did not start")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


class Nodes:
    """Engines by their flags. Two of one kind play the same model."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, *flags: str) -> str:
        process, address = await start(*flags)
        self._processes.append(process)
        return address

    async def close(self) -> None:
        for process in self._processes:
            process.kill()
            await process.wait()


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    started = Nodes()
    yield started
    await started.close()


async def first(
    http: aiohttp.ClientSession, address: str, request: Asked, transcript: Transcript, able: Capability
) -> AsyncGenerator[bytes, None]:
    """The stream of the first engine as the client gets it, without `[DONE]`."""
    body = prepared(request, transcript.plan, able, asks=False)
    async with http.post(f"http://{address}{request.inner_path}", data=body) as answer:
        assert answer.status == 200, await answer.text()
        splitter = Splitter()
        async for data in answer.content.iter_any():
            for event in split_events(splitter.feed(data)):
                if event_data(event) != b"[DONE]":
                    yield transcript.take(event, orjson.loads(event_data(event)))


async def told(
    http: aiohttp.ClientSession,
    addresses: Sequence[str],
    request: Asked,
    able: Capability,
    cuts: Sequence[int],
) -> Told:
    """What the client is told when the stream breaks after so many events, and each continuation as well."""
    transcript = Transcript(request, plan_of(request))
    seen = Told()
    stream: AsyncGenerator[bytes, None] = first(http, addresses[0], request, transcript, able)
    for number, cut in enumerate([*cuts, 10_000]):
        if number:
            assert transcript.obstacle(able) == ""
            stream = Continuation(
                session=http,
                address=addresses[number % len(addresses)],
                headers=CIMultiDict(),
                capability=able,
                transcript=transcript,
                moved=lambda: None,
            ).blocks()
        async for event in stream:
            seen.take(event)
            cut -= 1
            if cut <= 0:
                break
        await stream.aclose()
        if transcript.finish:
            break
    if owed := transcript.closing():
        seen.take(owed)
    assert len(seen.heads) == 1
    return seen


async def every_cut(
    http: aiohttp.ClientSession, addresses: Sequence[str], request: Asked, able: Capability
) -> None:
    whole = await told(http, addresses, request, able, [])
    assert whole.finish
    for cut in range(2, (whole.usage or {"completion_tokens": 40})["completion_tokens"] + 2):
        cuts = [cut, 1 + cut % 7] if cut % 3 == 0 else [cut]
        assert await told(http, addresses, request, able, cuts) == whole, f"cut after {cuts} events"


async def test_every_cut_of_every_kind(http: aiohttp.ClientSession, nodes: Nodes) -> None:
    addresses = [await nodes.start(IDS, *PARSERS), await nodes.start(IDS, *PARSERS)]
    able = await probe(http, addresses[0], CIMultiDict())
    assert able == await probe(http, addresses[1], CIMultiDict())
    assert (able.way, able.reasons) == (Way.DERENDER, False)
    for request in CASES.values():
        await every_cut(http, addresses, request, able)


async def test_every_cut_where_the_engine_reasons(http: aiohttp.ClientSession, nodes: Nodes) -> None:
    addresses = [await nodes.start(IDS, *PARSERS, "--reasoning-parser", "qwen3")] * 2
    able = await probe(http, addresses[0], CIMultiDict())
    assert (able.way, able.reasons) == (Way.DERENDER, True)
    for request in THINKING.values():
        await every_cut(http, addresses, request, able)


async def test_text_needs_no_scale_out(http: aiohttp.ClientSession, nodes: Nodes) -> None:
    addresses = [await nodes.start(*PARSERS)] * 2
    able = await probe(http, addresses[0], CIMultiDict())
    assert able.way is Way.CLEAN
    assert "403" in able.why
    for name in ("chat", "text", "stop string", "no limit"):
        await every_cut(http, addresses, CASES[name], able)
    transcript = Transcript(CASES["tool call"], plan_of(CASES["tool call"]))
    transcript.spoken, transcript.prompt, transcript.head = True, [1], {"id": "x"}
    assert "--enable-scale-out" in transcript.obstacle(able)


@pytest.mark.parametrize("flags", [("--max-model-len", "4096"), ("--served-model-name", "other")])
async def test_engines_that_differ_have_other_identities(
    http: aiohttp.ClientSession, nodes: Nodes, flags: tuple[str, ...]
) -> None:
    one, other = await nodes.start(IDS), await nodes.start(IDS, *flags)
    identities = {(await probe(http, address, CIMultiDict())).identity for address in (one, other, one)}
    assert len(identities) == 2
    assert "" not in identities
