"""Eight adapters on three nodes of real llama.cpp, which has those that it was started with and knows them by
number: nodes reclaimed and killed, a source changed, a server started again with other numbers, and none at
last.

Each server runs one request at a time, so a text tells which adapter said it, and any other text is wrong.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from policies.held import revision_of
from tests.support.adapter_pool import PATIENCE, Clients, asked, nobody_at
from tests.support.llama_servers import MODEL, PROGRAM, make_adapters, running_llama

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp, pytest.mark.timeout(300)]

NAMES = tuple(f"lora-{number}" for number in range(8))
TOKENS = 24
SLOTS = ["--parallel", "1", "--threads", "1", "--ctx-size", "16384"]


def tables(adapters: dict[str, str]) -> dict[str, Any]:
    engine = {"kind": "llamacpp", "executable": str(PROGRAM), "served_name": "base", "args": SLOTS}
    return {
        "pool.test": {"replicas": 3, "model": str(MODEL), "adapters": adapters},
        "pool.test.engine": engine,
        "pool.test.gateway": {"queue_deadline": "60s"},
        "pool.test.drain": {"budget": "30s"},
        "pool.test.health": {"replace_after": "90s"},
    }


def everywhere(adapters: dict[str, str]) -> Callable[[Any], bool]:
    """Three nodes and no other, each of which gets requests for these and no others."""
    wanted = {f"{name}@{revision_of(source)}" for name, source in adapters.items()}
    return lambda pool: (
        len(pool["nodes"]) == pool["serving"] == 3 and all({*n["adapters"]} == wanted for n in pool["nodes"])
    )


async def texts_of(folder: Path, files: list[str]) -> list[str]:
    """What is said by each of these adapters, and last what is said by none."""
    found = []
    words = [word for file in files for word in ("--lora", file)]
    async with aiohttp.ClientSession() as http:
        with running_llama(folder, slots=1, words=words) as server:
            for number in range(len(files) + 1):
                lora = [{"id": number % len(files), "scale": float(number < len(files))}]
                status, text, _ = await asked(http, server.url, "any", TOKENS, lora=lora)
                assert status == 200, text
                found.append(text)
    return found


async def numbers(http: aiohttp.ClientSession, node: Any) -> list[str]:
    """The files of a node's adapters; none before it has loaded them."""
    async with http.get(f"http://{node['address']}/lora-adapters") as answer:
        return [row["path"] for row in await answer.json()] if answer.status == 200 else []


async def quiet(stack: Any, clients: Clients) -> None:
    """From here on no streams: those of a server that dies end typed, as llama.cpp tells no ids of tokens."""
    clients.streams = False

    async def none() -> bool:
        return not clients.open_streams

    await stack.until("no stream is open", none)


def command_of(stack: Any, node: Any) -> list[str]:
    """The command line of a node's engine."""
    host = node["address"].rpartition(":")[0]
    line = next(line for line in stack.command_lines().values() if f"--host {host} " in line)
    words = line.split()
    return words[words.index(str(PROGRAM)) :]


async def replaced(stack: Any, node: Any, whole: Callable[[Any], bool]) -> None:
    """Wait until other nodes have all of it, and this one is gone."""

    def done(pool: Any) -> bool:
        return node["id"] not in {n["id"] for n in pool["nodes"]} and whole(pool)

    await stack.until_pool(f"{node['id']} is replaced", done)


async def reclaimed_and_killed(stack: Any, clients: Clients, adapters: dict[str, str]) -> None:
    node = await stack.a_node("spot")
    await stack.admin("reclaim", node=node["id"], notice_s=20.0)
    await replaced(stack, node, everywhere(adapters))
    await quiet(stack, clients)
    node = await stack.a_node("spot")
    await stack.admin("reclaim", node=node["id"], notice_s=0)
    await clients.some(20)
    await replaced(stack, node, everywhere(adapters))
    clients.streams = True


async def reloaded(stack: Any, adapters: dict[str, str]) -> None:
    stack.configure({"pool.test": {"adapters": adapters}})
    done = await stack.cli("reload", "--wait")
    assert done.code == 0, done.err


async def changed(stack: Any, adapters: dict[str, str]) -> None:
    """Another set: every node is replaced."""
    before, whole = {*await stack.nodes()}, everywhere(adapters)
    await reloaded(stack, adapters)

    def others(pool: Any) -> bool:
        return before.isdisjoint(n["id"] for n in pool["nodes"]) and whole(pool)

    await stack.until_pool("every node is another one, with the new set", others)


async def taken_away(stack: Any, clients: Clients) -> None:
    """The last adapters go: first the gateway knows of none while its nodes have all, then the nodes too."""
    before = {*await stack.nodes()}
    assert (await stack.cli("pause", "--reason", "nodes stay")).code == 0
    await reloaded(stack, {})

    async def heir() -> bool:
        gateways = [line for line in stack.command_lines().values() if " gateway " in line]
        return len(gateways) == 1 and "lora-0" not in await stack.get(stack.gateway_port, "/v1/models")

    await stack.until("a gateway answers that knows of none", heir)
    await clients.some()
    assert before == {*await stack.nodes()}
    assert (await stack.cli("resume")).code == 0

    def others(pool: Any) -> bool:
        return before.isdisjoint(n["id"] for n in pool["nodes"]) and everywhere({})(pool)

    await stack.until_pool("every node is another one", others)
    await clients.some()


async def started_again(stack: Any, http: aiohttp.ClientSession, node: Any, adapters: dict[str, str]) -> None:
    """Behind everybody's back a server starts again at its port, in another order and without lora-0."""
    words = command_of(stack, node)
    files = [file for name, file in reversed(adapters.items()) if name != "lora-0"]
    words = [*words[: words.index("--lora")], *(word for file in files for word in ("--lora", file))]

    async def up() -> bool:
        try:
            return await numbers(http, node) == files
        except aiohttp.ClientError:
            return False

    await stack.admin("kill-engine", node=node["id"])
    await stack.until("nothing listens there", lambda: nobody_at(node["address"]))
    words = ["sh", "-c", 'until "$@"; do sleep 0.3; done', "sh", *words]  # its port may not be free at once
    child = subprocess.Popen(words, env=stack.full_environment, start_new_session=True)  # noqa: ASYNC220
    try:
        await stack.until("it is up again", up)
        await replaced(stack, node, everywhere(adapters))
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


async def test_adapters_stay_what_they_are_through_everything(new_stack: Any, tmp_path: Path) -> None:
    files = make_adapters(tmp_path, 9)
    old = dict(zip(NAMES, files, strict=False))
    new = {**old, "lora-3": files[8]}
    async with (
        new_stack(tables(old)) as stack,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as http,
    ):
        *said, newer, base = await texts_of(tmp_path, files)
        assert len({*said, newer, base}) == 10
        texts = {name: {text} for name, text in zip((*NAMES, "base"), (*said, base), strict=True)}
        await stack.until_pool("every node has all", everywhere(old))
        async with Clients(stack.url, texts, count=4, tokens=TOKENS) as clients:
            await clients.some()
            await reclaimed_and_killed(stack, clients, old)
            texts["lora-3"].add(newer)
            await changed(stack, new)
            texts["lora-3"] = {newer}
            await clients.some()
            await quiet(stack, clients)
            await started_again(stack, http, await stack.a_node("spot"), new)
            await clients.some()
            clients.streams = True
            for name in NAMES:
                del texts[name]
            await clients.some(8)  # what was asked of them is answered
            await taken_away(stack, clients)
        assert clients.failed == []
        assert {*clients.whole} == {"base", *NAMES}
        stack.end_heirs()
