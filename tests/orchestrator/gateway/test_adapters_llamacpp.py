"""Adapters of real llama.cpp servers, which know them by number, apply all of them unless told, and never say
that there is no such number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
from llama_servers import LlamaServer

from policies.held import Adapter, Held
from policies.model import TargetPhase, TargetSpec
from tests.support.adapter_pool import PATIENCE, Clients, asked
from tests.support.llama_servers import make_adapters

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp, pytest.mark.timeout(300)]

NAMES = tuple(f"lora-{number}" for number in range(8))
TOKENS = 24


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Eight of them, and a ninth that takes the place of lora-3."""
    files = make_adapters(tmp_path_factory.mktemp("adapters"), 9)
    return [Adapter(name=name, source=file) for name, file in zip((*NAMES, "lora-3"), files, strict=True)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Start a server that has these: `start("a", adapters)`. It runs one request at a time, so that texts are
    always the same.
    """
    with ExitStack() as stack:

        def begin(name: str, adapters: list[Adapter]) -> LlamaServer:
            words = [word for adapter in adapters for word in ("--lora", adapter.source)]
            words += ["--alias", "base"]
            server = LlamaServer(tmp_path, name=name, slots=1, words=words)
            stack.callback(server.kill)
            server.start()
            return server

        yield begin


def numbered(adapters: list[Adapter]) -> tuple[Held, ...]:
    return tuple(
        Held(name=adapter.name, number=number, revision=adapter.revision)
        for number, adapter in enumerate(adapters)
    )


def spec(server: LlamaServer, held: list[Adapter], phase: TargetPhase = TargetPhase.ACTIVE) -> TargetSpec:
    return TargetSpec(id=server.name, address=server.address, adapters=numbered(held), phase=phase)


async def itself(http: aiohttp.ClientSession, server: LlamaServer, number: int | None) -> str:
    """What a server says by one of its adapters, or by none."""
    lora = [{"id": number or 0, "scale": 0.0 if number is None else 1.0}]
    status, text, _ = await asked(http, server.url, "any", TOKENS, lora=lora)
    assert status == 200, text
    return text


async def drained(running, node: str, eventually) -> None:
    async def idle() -> bool:
        return (await running.targets())[node]["in_flight"] == 0

    await eventually(idle)


async def test_eight_adapters_are_kept_equal_through_everything(
    gateways, http, start, adapters, eventually
) -> None:
    """Each node has them under other numbers. The base model is asked for too, and answers as itself."""
    old, new = adapters[:8], [*adapters[:3], adapters[8], *adapters[4:8]]
    bare = start("bare", [])
    a, b, c = start("a", old), start("b", old[::-1]), start("c", old[4:] + old[:4])
    texts = {name: {await itself(http, a, number)} for number, name in enumerate(NAMES)}
    texts["base"] = {await itself(http, bare, None)}
    assert len({text for each in texts.values() for text in each}) == 9
    running = await gateways(pool="test", served="base", loaded=NAMES, numbered=True, queue_deadline=60.0)
    nodes = {
        "a": spec(a, old),
        "b": spec(b, old[::-1]),
        "c": spec(c, old[4:] + old[:4]),
    }
    servers = {"a": a, "b": b, "c": c}

    async def replace(gone: str, name: str, held: list[Adapter]) -> None:
        """Another node takes the place of one, which drains and ends."""
        servers[name] = start(name, held)
        nodes[name] = spec(servers[name], held)
        nodes[gone] = TargetSpec(
            id=gone, address=servers[gone].address, adapters=nodes[gone].adapters, phase=TargetPhase.DRAINING
        )
        await running.push(*nodes.values())
        await drained(running, gone, eventually)
        del nodes[gone]
        await running.push(*nodes.values())
        servers.pop(gone).kill()

    await running.push(*nodes.values())
    await eventually(running.all_checked)
    async with Clients(running.url, texts, count=6, tokens=TOKENS) as clients:
        await clients.some()
        await replace("a", "d", old[2:] + old[:2])
        await clients.some()
        changed = start("e", new)
        texts["lora-3"].add(await itself(http, changed, 3))
        nodes["e"], servers["e"] = spec(changed, new), changed
        for gone, name in (("b", "f"), ("c", "g")):
            await replace(gone, name, new[::-1])
        nodes["d"] = TargetSpec(
            id="d", address=servers["d"].address, adapters=nodes["d"].adapters, phase=TargetPhase.DRAINING
        )
        await running.push(*nodes.values())
        await drained(running, "d", eventually)
        del nodes["d"]
        await running.push(*nodes.values())
        texts["lora-3"] = {await itself(http, changed, 3)}
        await clients.some()
        clients.streams = False  # those of a node that dies end typed, as its ids are not told
        await eventually(lambda: not clients.open_streams)
        servers["f"].kill()
        await clients.some(10)
        servers["f"].start()
        await clients.some()
    assert clients.failed == []
    assert set(clients.whole) == {"base", *NAMES}
    state = await running.state()
    assert state["totals"]["streams_cut"] == state["totals"]["requests_client_error"] == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
async def test_every_dialect_gets_the_adapter_that_it_names_and_no_other(
    gateways, http, start, adapters, path
) -> None:
    server, bare = start("a", adapters[:2]), start("bare", [])
    running = await gateways(pool="test", served="base", loaded=NAMES[:2], numbered=True)
    await running.push(spec(server, adapters[:2]))
    hi = [{"role": "user", "content": "hi"}]
    body = {"messages": hi, "prompt": "hi", "input": "hi", "max_tokens": 12, "max_output_tokens": 12}
    body = {key: value for key, value in body.items() if key in _FIELDS[path]}

    async def said(url: str, model: str) -> str:
        fields = {"model": model, "temperature": 0, **body}
        async with http.post(url + path, json=fields, headers={"Connection": "close"}) as answer:
            assert answer.status == 200, await answer.text()
            found = await answer.json()
        assert found["model"] == model
        return str(_text(found))

    base = await said(bare.url, "base")
    assert await said(running.url, "base") == base
    first, second = [await said(running.url, name) for name in NAMES[:2]]
    assert len({base, first, second}) == 3
    assert await said(running.url, "base") == base


_FIELDS = {
    "/v1/chat/completions": ("messages", "max_tokens"),
    "/v1/completions": ("prompt", "max_tokens"),
    "/v1/messages": ("messages", "max_tokens"),
    "/v1/responses": ("input", "max_output_tokens"),
}


def _text(answer: dict) -> object:
    if "output" in answer:
        return answer["output"][0]["content"][0]["text"]
    if "content" in answer:
        return answer["content"][0]["text"]
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


async def test_a_number_that_means_another_adapter_since_a_restart_is_never_asked_for(
    gateways, http, start, adapters, eventually
) -> None:
    """Behind everybody's back the only server starts again: in another order, with fewer, and as it was."""
    server = start("a", adapters[:2])
    texts = {name: {await itself(http, server, number)} for number, name in enumerate(NAMES[:2])}
    running = await gateways(pool="test", served="base", loaded=NAMES[:2], numbered=True, queue_deadline=60.0)
    await running.push(spec(server, adapters[:2]))
    await eventually(running.all_checked)
    words = server.words
    others = [(adapters[1], adapters[0]), (adapters[0],), ()]

    def lacking() -> int:
        return sum(running.lane.adapters.of(name).lacking for name in NAMES[:2])

    async with Clients(running.url, texts, count=4, tokens=TOKENS) as clients:
        await clients.some(10)
        clients.streams = False  # those of a server that dies end typed
        await eventually(lambda: not clients.open_streams)
        for order in others:
            server.kill()
            server.words = [*_loras(order), "--alias", "base"]
            before = lacking()
            server.start()
            await eventually(lambda before=before: lacking() > before or clients.failed)
            await running.push(spec(server, list(order)))
            if len(order) == 2:
                await clients.some(4)
        server.kill()
        server.words = words
        server.start()
        await running.push(spec(server, adapters[:2]))
        await clients.some(10)
    assert clients.failed == []
    assert set(clients.whole) == {*NAMES[:2]}


def _loras(adapters) -> list[str]:
    return [word for adapter in adapters for word in ("--lora", adapter.source)]
