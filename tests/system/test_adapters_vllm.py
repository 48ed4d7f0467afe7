"""Eight adapters on two nodes of real vLLM, which the daemon has load and unload them while they serve: a
source is changed, one is unloaded and a server is started again behind everybody's back.

What a request says depends on what else is in its batch, so answers are judged by their length and the model
that they name; that a stream goes on token for token is shown where it runs alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from cloud.engines.vllm_cpu import CPU_ARGS, CPU_ENV
from policies.held import Adapter
from tests.support.adapter_pool import Clients, nobody_at
from tests.support.vllm_server import MODEL, ROOT, VLLM, skip_without_vllm

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1200)]

NAMES = tuple(f"lora-{number}" for number in range(8))
TOKENS = 30
STARTS_WITHIN = 400.0  # s for servers that start together on two busy cores
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Bern|Oslo)"\}\}\n</tool_call>'
"""What a model with random weights has to be told to say."""


def tables(adapters: dict[str, str]) -> dict[str, Any]:
    parsers = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    flags = ("--max-lora-rank", "8", "--max-loras", "9", "--max-cpu-loras", "10")
    return {
        "daemon": {"probe_timeout": "20s", "probe_interval": "500ms"},
        "pool.test": {"replicas": 2, "model": str(MODEL), "adapters": adapters},
        "pool.test.engine": {
            "kind": "vllm",
            "executable": str(VLLM),
            "served_name": "tiny",
            "args": [*CPU_ARGS, *flags, *parsers],
            "env": {f'"{key}"': value for key, value in CPU_ENV.items()},
        },
        "pool.test.gateway": {"queue_deadline": "300s"},
        "pool.test.drain": {"budget": "60s"},
        "pool.test.health": {"unhealthy_after": "20s", "replace_after": "400s", "boot_timeout": "400s"},
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of eight adapters, and of a ninth that takes the place of lora-3."""
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    maker = ROOT / "tools" / "vllm" / "make_tiny_model.py"
    words = [word for name in (*NAMES, "new") for word in ("--adapter", name)]
    subprocess.run([VLLM.with_name("python"), maker, folder, *words], check=True, capture_output=True)
    return [f"{folder}-{name}@1" for name in (*NAMES, "new")]


def served_as(adapters: dict[str, str]) -> set[str]:
    return {Adapter(name=name, source=source).served_as for name, source in adapters.items()}


def everywhere(adapters: dict[str, str]) -> Callable[[Any], bool]:
    """Two nodes, each of which gets requests for these and no others."""
    wanted = served_as(adapters)
    return lambda pool: (
        len(pool["nodes"]) == pool["serving"] == 2 and all({*n["adapters"]} == wanted for n in pool["nodes"])
    )


class World:
    """The stack and what tests ask its engines."""

    def __init__(self, stack: Any, http: aiohttp.ClientSession) -> None:
        self.stack, self.http = stack, http

    async def until_pool(self, what: str, holds: Callable[[Any], bool]) -> None:
        async def look() -> bool:
            pool = await self.stack.pool()
            return pool is not None and holds(pool)

        await self.stack.until(what, look, patience=STARTS_WITHIN)

    async def listed(self, node: Any) -> set[str] | None:
        """The adapters that its engine lists; None where nothing listens."""
        try:
            async with self.http.get(f"http://{node['address']}/v1/models") as answer:
                return {row["id"] for row in (await answer.json())["data"]} - {"tiny"}
        except aiohttp.ClientError:
            return None

    async def has(self, node: Any, adapters: dict[str, str]) -> None:
        """Wait until its engine has these and no others."""

        async def so() -> bool:
            return await self.listed(node) == served_as(adapters)

        await self.stack.until("its engine has them alone", so, patience=STARTS_WITHIN)

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return [e["data"] for e in await self.stack.events() if e["kind"] == kind]

    async def unload(self, node: Any, name: str) -> None:
        """Behind everybody's back."""
        url = f"http://{node['address']}/v1/unload_lora_adapter"
        async with self.http.post(url, json={"lora_name": name}) as answer:
            assert answer.status == 200, await answer.text()

    def command_of(self, node: Any) -> list[str]:
        """The command line of a node's engine."""
        host = node["address"].rpartition(":")[0]
        lines = self.stack.command_lines().values()
        words = next(line for line in lines if f"--host {host} " in line).split()
        return words[words.index(str(VLLM)) :]


async def calls_a_tool(world: World, adapter: str) -> None:
    """A tool's call comes under the name that the client knows, plain and streamed."""
    body = {"model": adapter, "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    body |= {"tools": [WEATHER], "structured_outputs": {"regex": CALL}, "max_tokens": 250}
    for stream in (False, True):
        url = f"{world.stack.url}/v1/chat/completions"
        async with world.http.post(url, json=body | {"stream": stream}) as answer:
            said = await answer.text()
            assert answer.status == 200, said
        assert f'"model":"{adapter}"' in said.replace(" ", "")
        assert f"{adapter}@" not in said
        assert '"name":"weather"' in said.replace(" ", ""), said


async def changed(world: World, adapters: dict[str, str], **broken: str) -> None:
    """Another set; `broken` are sources that no engine can load, which keep nothing else from being had."""
    world.stack.configure({"pool.test": {"adapters": adapters | broken}})
    done = await world.stack.cli("reload", "--wait")
    assert done.code == 0, done.err
    await world.until_pool("every node has the new set", everywhere(adapters))
    for node in (await world.stack.nodes()).values():
        await world.has(node, adapters)
    for name in broken:

        async def told(line: str = f'missing_nodes{{adapter="{name}",pool="test"}} 2.0') -> bool:
            return line in await world.stack.get(world.stack.monitoring_port, "/metrics")

        await world.stack.until("both nodes are told to lack it", told)


async def started_again(world: World, adapters: dict[str, str]) -> None:
    """A server is killed and started again at its port, with no adapter; its streams go on elsewhere."""
    node = await world.stack.a_node("spot")
    words = world.command_of(node)

    await world.stack.admin("kill-engine", node=node["id"])
    await world.stack.until("nothing listens there", lambda: nobody_at(node["address"]))
    environment = {**world.stack.full_environment, **CPU_ENV, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    words = ["sh", "-c", 'until "$@"; do sleep 1; done', "sh", *words]  # its port may not be free at once
    child = subprocess.Popen(words, env=environment, start_new_session=True)  # noqa: ASYNC220
    try:
        await world.has(node, adapters)
        await world.until_pool("it gets requests for all", everywhere(adapters))
        assert node["id"] in await world.stack.nodes(), "it was not replaced"
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


async def test_the_daemon_keeps_adapters_of_real_engines_equal(new_stack: Any, sources: list[str]) -> None:
    old = dict(zip(NAMES, sources, strict=False))
    new = {**old, "lora-3": sources[8]}
    async with (
        new_stack(tables(old)) as stack,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=STARTS_WITHIN)) as http,
    ):
        world = World(stack, http)
        await world.until_pool("every node has all", everywhere(old))
        await calls_a_tool(world, "lora-5")
        texts: dict[str, set[str] | None] = dict.fromkeys(("tiny", *NAMES))
        async with Clients(stack.url, texts, count=4, tokens=TOKENS) as clients:
            await clients.some()
            await changed(world, new, ghost="/nowhere/ghost@1")
            await clients.some()
            (lost,) = served_as({"lora-1": old["lora-1"]})
            node = await stack.a_node("on-demand")
            await world.unload(node, lost)

            async def seen() -> bool:
                return any(e["adapter"] == lost for e in await world.events("AdapterLost"))

            await stack.until("it is seen that it was unloaded", seen)
            await world.has(node, new)
            await world.until_pool("and it is loaded again", everywhere(new))
            await clients.some()
            await started_again(world, new)
            await clients.some()
        assert clients.failed == []
        assert {*clients.whole} == {"tiny", *NAMES}
        (was,) = served_as({"lora-3": old["lora-3"]})
        unloads = [e for e in await world.events("AdapterAnswered") if e["adapter"] == was and not e["load"]]
        assert [e["failure"] for e in unloads] == ["", ""]
        (ghost,) = served_as({"ghost": "/nowhere/ghost@1"})
        failures = {e["failure"] for e in await world.events("AdapterAnswered") if e["adapter"] == ghost}
        assert all("No adapter found" in failure for failure in failures), failures
        stack.end_heirs()
