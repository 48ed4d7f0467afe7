"""One file with two pools and two providers, all of them real llama.cpp, used by the clients' own libraries.

The daemon starts the pools' servers on the local cloud, the test those that play providers. All have the same
weights, so a greedy text tells nobody where it came from; the header of the answer does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from llama_servers import MODEL, PROGRAM, WEATHER, WIDTH, LlamaServer, running_llama

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp, pytest.mark.asyncio(loop_scope="module")]

KEY = "sk-real"
CHAT, EMBED = "test", "embed"
HI: Any = [{"role": "user", "content": "hi"}]
BOTH = ("assistant", "cheap", "frontier")
"""A pool with an Anthropic provider behind it, an OpenAI provider alone, an Anthropic provider alone."""

FILE = f"""
[[route]]
models = ["assistant", "gpt-4o"]
to = [{{ pool = "{CHAT}" }}, {{ provider = "claude", model = "claude-sonnet-5" }}]

[[route]]
models = ["cheap"]
to = [{{ provider = "gpt", model = "gpt-5-mini" }}]

[[route]]
models = ["frontier"]
to = [{{ provider = "claude", model = "claude-opus-5" }}]

[[route]]
models = ["text-embedding-3-small", "vectors"]
to = [{{ pool = "{EMBED}" }}]
task = "embed"
"""


def provider(server: LlamaServer, kind: str, key_file: str) -> dict[str, Any]:
    made = {"kind": kind, "url": server.url, "api_key_file": key_file, "usd_per_day": "20"}
    return made | ({"sampling": True} if kind == "anthropic" else {})


class World:
    """The stack, the servers that play providers, and both libraries' clients of the one address."""

    def __init__(self, stack: Any, providers: dict[str, LlamaServer]) -> None:
        self.stack, self.providers = stack, providers
        common: dict[str, Any] = {"api_key": "client", "max_retries": 0, "timeout": 60.0}
        self.openai = openai.AsyncOpenAI(base_url=f"{stack.url}/v1", **common)
        self.anthropic = anthropic.AsyncAnthropic(base_url=stack.url, **common)

    async def whole(self) -> None:
        """Wait until every node of both pools serves."""

        async def served() -> bool:
            view = await self.stack.status()
            return view is not None and all(
                pool["ready"] >= pool["wanted"] <= pool["serving"] for pool in view["pools"]
            )

        await self.stack.until("both pools serve", served)

    async def asked(self, model: str, **more: Any) -> tuple[Any, str]:
        """One plain chat, and the backend that answered."""
        raw = await self.openai.chat.completions.with_raw_response.create(
            model=model, messages=HI, max_tokens=12, temperature=0, **more
        )
        return raw.parse(), raw.headers.get("X-Orchestrator-Backend", "")

    def kill_chat(self) -> int:
        """kill -9 of every engine of the chat pool, all at once."""
        engines = [pid for pid, line in self.stack.command_lines().items() if f"--alias {CHAT}-model" in line]
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
        return len(engines)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    stack_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("routes")
    key_file = directory / "key"
    key_file.write_text(KEY, encoding="utf-8")
    key_file.chmod(0o600)
    with ExitStack() as servers:
        providers = {
            name: servers.enter_context(running_llama(directory, name=name, key=KEY))
            for name in ("claude", "gpt")
        }
        async with stack_in(directory, {}, 0.3, ("local-cloud",)) as stack:
            base = dict(stack.tables)
            engine = {"kind": "llamacpp", "executable": str(PROGRAM)}
            small = ["--threads", "1", "--parallel", "4", "--ctx-size", "16384"]
            front = base.pop(f"pool.{CHAT}.gateway")
            shared = {key: front.pop(key) for key in ("listen", "metrics_listen", "socket")}
            tables: dict[str, Any] = {"daemon": base.pop("daemon"), "gateway": shared}
            for pool, more, args in ((CHAT, {}, []), (EMBED, {"task": "embed"}, ["--pooling", "mean"])):
                for name, table in base.items():
                    tables[name.replace(f"pool.{CHAT}", f"pool.{pool}")] = dict(table)
                tables[f"pool.{pool}.gateway"] = dict(front)
                tables[f"pool.{pool}"] |= {"model": str(MODEL), "replicas": 2}
                served = f"{pool}-model" if pool == CHAT else "text-embedding-3-small"
                tables[f"pool.{pool}.engine"] = (
                    engine | more | {"args": [*small, *args], "served_name": served}
                )
            tables["provider.claude"] = provider(providers["claude"], "anthropic", str(key_file))
            tables["provider.gpt"] = provider(providers["gpt"], "openai", str(key_file))
            for name in ("claude-sonnet-5", "claude-opus-5"):
                tables[f'provider.claude.price."{name}"'] = {
                    "input": "3",
                    "output": "15",
                    "most_output": 8192,
                }
            tables['provider.gpt.price."gpt-5-mini"'] = {"input": "1", "output": "2", "most_output": 8192}
            stack.write(tables, FILE)
            await stack.start("gateway", "daemon")
            world = World(stack, providers)
            await world.whole()
            yield world
            await world.openai.close()
            await world.anthropic.close()


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.whole()
    return running


async def test_the_list_of_models_is_that_of_the_routes(world: World) -> None:
    listed = {model.id async for model in world.openai.models.list()}
    assert {"assistant", "cheap", "frontier", "text-embedding-3-small"} <= listed
    assert listed.isdisjoint({"gpt-4o", "vectors"}), "other names of the same are not listed"


async def test_a_name_that_leads_nowhere_is_answered_with_the_nearest(world: World) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await world.asked("asistant")
    assert "assistant" in refused.value.message
    with pytest.raises(anthropic.NotFoundError) as too:
        await world.anthropic.messages.create(model="asistant", messages=HI, max_tokens=4)
    assert "assistant" in too.value.message


@pytest.mark.parametrize("model", BOTH)
async def test_openais_client_chats_plain_and_streamed(world: World, model: str) -> None:
    answer, _ = await world.asked(model)
    assert (answer.model, answer.usage.completion_tokens) == (model, 12)
    stream = await world.openai.chat.completions.create(
        model=model,
        messages=HI,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {model}
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == answer.choices[0].message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


@pytest.mark.parametrize("model", BOTH)
async def test_openais_client_calls_a_tool(world: World, model: str) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    request: Any = {"model": model, "messages": HI, "tools": [tool], "tool_choice": "required"}
    request |= {"temperature": 0, "max_tokens": 2000}
    answer = await world.openai.chat.completions.create(**request)
    async with world.openai.chat.completions.stream(**request) as stream:
        streamed = await stream.get_final_completion()
    for found in (answer, streamed):
        assert found.choices[0].finish_reason == "tool_calls"
        calls = [call.function for call in found.choices[0].message.tool_calls]
        assert {call.name for call in calls} == {"weather"}
        assert {json.loads(call.arguments)["city"] for call in calls} <= {"Oslo", "Bergen"}


@pytest.mark.parametrize("model", BOTH)
async def test_anthropics_client_gets_messages_plain_and_streamed(world: World, model: str) -> None:
    request: Any = {"model": model, "messages": HI, "max_tokens": 12, "extra_body": {"temperature": 0}}
    answer = await world.anthropic.messages.create(**request)
    async with world.anthropic.messages.stream(**request) as stream:
        streamed = await stream.get_final_message()
    for found in (answer, streamed):
        assert found.stop_reason == "max_tokens"
        assert found.usage.output_tokens == 12
    assert answer.content[0].text == streamed.content[0].text
    read = [
        found.usage.input_tokens + (found.usage.cache_read_input_tokens or 0) for found in (answer, streamed)
    ]
    assert read[0] == read[1] > 12


@pytest.mark.parametrize("model", BOTH)
async def test_anthropics_client_calls_a_tool(world: World, model: str) -> None:
    tool = {"name": "weather", "description": "of a city", "input_schema": WEATHER}
    answer = await world.anthropic.messages.create(
        model=model,
        messages=HI,
        max_tokens=2000,
        tools=[tool],
        tool_choice={"type": "any"},
        extra_body={"temperature": 0},
    )
    assert answer.stop_reason == "tool_use"
    assert {block.input["city"] for block in answer.content if block.type == "tool_use"} <= {"Oslo", "Bergen"}


@pytest.mark.parametrize("form", [{"encoding_format": "float"}, {}], ids=["numbers", "packed"])
async def test_embeddings_come_from_the_pool_that_embeds(world: World, form: Any) -> None:
    texts = ["one", "another", "one"]
    answer = await world.openai.embeddings.create(model="vectors", input=texts, **form)
    vectors = [found.embedding for found in answer.data]
    assert [len(vector) for vector in vectors] == [WIDTH] * 3
    assert vectors[0] == vectors[2] != vectors[1]


async def test_a_chat_cannot_be_had_where_vectors_are_made(world: World) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await world.asked("vectors")
    assert refused.value.status_code in (400, 404)


async def test_everything_of_the_pool_is_killed_and_nobody_notices(world: World) -> None:
    """A provider answers with the same text, and the pool is asked again once it can."""
    before, backend = await world.asked("assistant")
    assert "claude" not in backend
    backends: list[str] = []
    killed = asyncio.Event()

    async def client() -> None:
        while not (killed.is_set() and any("claude" in name for name in backends)):
            answer, name = await world.asked("assistant")
            assert answer.choices[0].message.content == before.choices[0].message.content
            backends.append(name)

    async with asyncio.timeout(60.0):
        clients = [asyncio.create_task(client()) for _ in range(4)]
        while len(backends) < 20:  # noqa: ASYNC110 - the clients tell nobody
            await asyncio.sleep(0.01)
        assert world.kill_chat() == 2
        killed.set()
        await asyncio.gather(*clients)
        assert world.providers["claude"].metric("tokens_predicted_total") >= 12
        vectors = await world.openai.embeddings.create(model="vectors", input="one")
        assert len(vectors.data[0].embedding) == WIDTH, "the other pool did not notice"
        await world.whole()
        while "claude" in (await world.asked("assistant"))[1]:  # noqa: ASYNC110 - the gateway is asked
            await asyncio.sleep(0.05)
