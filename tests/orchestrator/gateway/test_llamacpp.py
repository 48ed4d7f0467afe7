"""The gateway in front of real llama.cpp servers: what can be sent again is not lost, and nothing is made up.

llama.cpp closes connections without a word, does not drain, and tells no ids of tokens, so a stream that
breaks cannot go on elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from llama_servers import WEATHER, LlamaServer, running_llama

from policies.model import TargetSpec
from policies.routing import Task

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp]

PATIENCE = 60.0
LONG = 2000  # tokens; enough work that what ends a stream finds it in flight
ONCE = {"Connection": "close"}  # a client of ours may not keep a connection to such a server either
PROMPTS = [f"tell me of node {number}" for number in range(4)]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[LlamaServer]]:
    """Two of them with the same model, for one request at a time: so greedy texts are always the same."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_llama(tmp_path, name=name, slots=1)) for name in ("a", "b")]


def specs(servers: list[LlamaServer]) -> list[TargetSpec]:
    return [TargetSpec(id=server.name, address=server.address) for server in servers]


def asked(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    body = {"model": "a", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return body | more


async def plain(client: aiohttp.ClientSession, url: str, prompt: str, tokens: int) -> str:
    async with client.post(f"{url}/v1/completions", json=asked(prompt, tokens), headers=ONCE) as answer:
        assert answer.status == 200, await answer.text()
        (choice,) = (await answer.json())["choices"]
    assert choice["finish_reason"] == "length"
    return str(choice["text"])


class Stream:
    """One streamed completion as its client sees it."""

    def __init__(self) -> None:
        self.text = ""
        self.finish = ""
        self.error: dict[str, Any] | None = None
        self.done = False
        self.node = ""
        self.began = asyncio.Event()

    async def read(self, client: aiohttp.ClientSession, url: str, prompt: str, tokens: int) -> Stream:
        body = asked(prompt, tokens, stream=True)
        async with client.post(f"{url}/v1/completions", json=body, headers=ONCE) as answer:
            assert answer.status == 200, await answer.text()
            self.node = answer.headers.get("X-Orchestrator-Node", "")
            async for line in answer.content:
                data = line.removeprefix(b"data: ").strip()
                self.done = self.done or data == b"[DONE]"
                if data.startswith(b"{"):
                    self._take(json.loads(data))
        return self

    def _take(self, event: dict[str, Any]) -> None:
        self.error = event.get("error", self.error)
        for choice in event.get("choices", ()):
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish
            self.began.set()

    @property
    def outcome(self) -> str:
        if self.error is not None:
            return str(self.error["code"])
        return "whole" if self.finish == "length" and self.done else "cut without a word"


async def test_connections_that_are_closed_without_a_word_cost_nothing(gateways, client, servers) -> None:
    running = await gateways(*specs(servers))
    itself = servers[0].url
    whole = {prompt: await plain(client, itself, prompt, 20) for prompt in PROMPTS}
    streamed = {prompt: (await Stream().read(client, itself, prompt, 20)).text for prompt in PROMPTS}

    async def one(number: int) -> None:
        for turn in range(30):
            prompt = PROMPTS[(number + turn) % len(PROMPTS)]
            if turn % 3 == 2:
                assert await plain(client, running.url, prompt, 20) == whole[prompt]
            else:
                stream = await Stream().read(client, running.url, prompt, 20)
                assert (stream.outcome, stream.text) == ("whole", streamed[prompt])

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*map(one, range(6)))
    assert (await running.state())["totals"]["streams_cut"] == 0


@pytest.mark.parametrize("how", ["kill -9", "frozen", "SIGTERM and then killed"])
async def test_a_stream_of_a_lost_server_ends_typed_and_told_no_lie(gateways, client, servers, how) -> None:
    """What had brought nothing is sent again and comes whole."""
    running = await gateways(*specs(servers), idle_timeout=2.0)
    lost, other = servers
    streams = [Stream() for _ in PROMPTS]
    async with asyncio.timeout(PATIENCE):
        tasks = [
            asyncio.create_task(stream.read(client, running.url, prompt, LONG))
            for stream, prompt in zip(streams, PROMPTS, strict=True)
        ]
        while not any(stream.began.is_set() and stream.node == lost.name for stream in streams):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if how == "frozen":
            lost.freeze()
        elif how == "kill -9":
            lost.kill()
        else:
            lost.terminate()
            await asyncio.sleep(1.0)
            lost.kill()
        await asyncio.gather(*tasks)
    outcomes = Counter((stream.node, stream.outcome) for stream in streams)
    assert outcomes.keys() <= {("a", "stream_interrupted"), ("a", "whole"), ("b", "whole")}
    assert outcomes["a", "stream_interrupted"] == (await running.state())["totals"]["streams_cut"] >= 1
    for stream, prompt in zip(streams, PROMPTS, strict=True):
        said = await plain(client, other.url, prompt, LONG)
        assert said.startswith(stream.text)
        if stream.outcome == "whole":  # but for the bytes of a last letter that is none
            assert len(said) - len(stream.text) <= 4


async def test_why_its_streams_cannot_go_on_elsewhere_is_told(gateways, servers, eventually) -> None:
    running = await gateways(*specs(servers), continuation="exact")

    async def told() -> bool:
        rows = (await running.targets()).values()
        return all(row["continuation"]["why"] for row in rows)

    await eventually(told)


async def test_openais_client_calls_a_tool(gateways, servers) -> None:
    running = await gateways(*specs(servers))
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    request: Any = {
        "model": "a",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool],
        "tool_choice": "required",
        "temperature": 0,
        "max_tokens": 2000,
    }
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(**request)
        async with sdk.chat.completions.stream(**request) as stream:
            streamed = await stream.get_final_completion()
    for found in (answer, streamed):
        assert found.choices[0].finish_reason == "tool_calls"
        for call in found.choices[0].message.tool_calls:
            assert json.loads(call.function.arguments)["city"] in ("Oslo", "Bergen")
    assert streamed.choices[0].message.content == answer.choices[0].message.content


async def test_anthropics_client_gets_the_same_from_a_pool_of_llamacpp(gateways, servers) -> None:
    """Messages are translated by the gateway: what the server makes of them itself is not asked."""
    running = await gateways(*specs(servers))
    tool = {"name": "weather", "description": "of a city", "input_schema": WEATHER}
    hi: Any = [{"role": "user", "content": "hi"}]
    async with anthropic.AsyncAnthropic(base_url=running.url, api_key="x", max_retries=0) as sdk:
        one: Any = {"model": "a", "messages": hi, "max_tokens": 12, "extra_body": {"temperature": 0}}
        answer = await sdk.messages.create(**one)
        async with sdk.messages.stream(**one) as stream:
            streamed = await stream.get_final_message()
        called = await sdk.messages.create(
            **(one | {"max_tokens": 2000}), tools=[tool], tool_choice={"type": "any"}
        )
    assert answer.stop_reason == streamed.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == streamed.usage.output_tokens == 12
    assert answer.usage.input_tokens == streamed.usage.input_tokens
    assert [block.text for block in answer.content] == [block.text for block in streamed.content]
    assert called.stop_reason == "tool_use"
    assert {block.input["city"] for block in called.content if block.type == "tool_use"} <= {"Oslo", "Bergen"}


async def test_a_server_without_memory_refuses_and_its_peer_answers(gateways, client, servers) -> None:
    """llama.cpp says 400 then, as if the request were wrong, or closes the connection on it."""
    running = await gateways(*specs(servers))
    starved, _ = servers
    resource.prlimit(starved.process.pid, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))
    large = asked("a b c " * 200, 20, user="x" * 6_000_000)
    texts = set()
    for _ in range(6):
        async with client.post(f"{running.url}/v1/completions", json=large, headers=ONCE) as answer:
            assert answer.status == 200, await answer.text()
            texts.add((await answer.json())["choices"][0]["text"])
    assert len(texts) == 1
    noticed = (await running.state())["totals"]["retries"] > 0 or starved.process.poll() is not None
    assert noticed, "it had memory enough: nothing is shown"


async def test_texts_that_are_too_long_to_embed_cost_nobody_else_anything(gateways, client, tmp_path) -> None:
    """llama.cpp says 500, with which a node that fails would answer too; clients are told 400."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(running_llama(tmp_path, name=name, task="embed", slots=1))
            for name in ("a", "b")
        ]
        running = await gateways(*specs(nodes), tasks={Task.EMBED}, retry_reserve=10, retry_budget=0.0)
        url = f"{running.url}/v1/embeddings"

        async def embed(text: str) -> tuple[int, dict[str, Any]]:
            async with client.post(url, json={"model": "a", "input": text}, headers=ONCE) as answer:
                return answer.status, await answer.json()

        whole = (await embed("short"))[1]["data"]
        over = False

        async def good() -> int:
            count = 0
            while not over:
                status, said = await embed("short")
                assert (status, said["data"]) == (200, whole)
                count += 1
            return count

        async with asyncio.timeout(PATIENCE):
            asking = [asyncio.create_task(good()) for _ in range(3)]
            for _ in range(20):
                status, said = await embed("a b c " * 1000)
                assert (status, said["error"]["code"]) == (400, "context_length_exceeded")
                assert "too large" in said["error"]["message"], "the engine's own words"
            over = True
            assert min(await asyncio.gather(*asking)) > 0
        rows = (await running.targets()).values()
        assert {(row["state"], row["breaker"]) for row in rows} == {("healthy", "closed")}
        nodes[0].kill()  # what may be sent again for a lost node is left
        assert {(await embed("short"))[0] for _ in range(8)} == {200}
