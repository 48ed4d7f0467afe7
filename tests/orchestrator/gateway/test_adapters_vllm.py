"""Eight adapters on three real vLLM servers: one replaced, one adapter swapped under load, one server started
again behind everybody's back; and streams of an adapter that go on elsewhere, token for token.

Which tokens a request gets beside others depends on what else is in its batch, also without any gateway. So
under load the answers' lengths are looked at, and their texts where a stream runs alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from policies.held import Adapter
from policies.model import TargetSpec
from tests.support.adapter_pool import BUILD, Clients, Hand, held_as, texts_of
from tests.support.gateway_rig import Relay
from tests.support.vllm_server import ROOT, VLLM, VllmServer, skip_without_vllm

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]

NAMES = tuple(f"lora-{number}" for number in range(8))
TOKENS = 30
FLAGS = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "9", "--max-cpu-loras", "10")
ENV = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
CUTS = 24
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Eight of them, and a ninth that takes the place of lora-3."""
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    maker = ROOT / "tools" / "vllm" / "make_tiny_model.py"
    words = [word for name in (*NAMES, "new") for word in ("--adapter", name)]
    subprocess.run([VLLM.with_name("python"), maker, folder, *words], check=True, capture_output=True)
    found = [Adapter(name=name, source=f"{folder}-{name}@v1") for name in NAMES]
    return [*found, Adapter(name="lora-3", source=f"{folder}-new@v2")]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    """Four of them, started at once."""
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("vllm")
    made = [VllmServer(folder, name, FLAGS, ENV) for name in "abcd"]
    try:
        for server in made:
            server.begin()
        yield made
    finally:
        for server in made:
            server.end()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        yield session


@pytest.fixture
async def hand(gateways, http) -> Hand:
    running = await gateways(pool="test", served="tiny", loaded=NAMES, queue_deadline=300.0)
    return Hand(running, http)


class Uncut:
    """What comes of one stream, and what goes wrong with it."""

    def __init__(self) -> None:
        self.text, self.seams, self.finish, self.models = "", 0, "", set()
        self.usage: dict[str, int] = {}
        self.chunks = 0
        self.reached = asyncio.Event()

    async def read(self, http, url: str, model: str, *, chat: bool, cut_at: int = 10**9) -> Uncut:
        body = {"model": model, "max_tokens": 120, "temperature": 0, "ignore_eos": True, "stream": True}
        body |= {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "spot nodes"}
        body |= {"stream_options": {"include_usage": True}}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        async with http.post(url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            async for raw in answer.content:
                line = raw.decode().strip()
                self.seams += line.startswith(": continued")
                if line.startswith("data: {"):
                    self._take(json.loads(line[6:]))
                if self.chunks >= cut_at:
                    self.reached.set()
        self.reached.set()
        return self

    def _take(self, event) -> None:
        assert "error" not in event, event
        self.models.add(event["model"])
        self.usage = {kind: event["usage"][kind] for kind in _COUNTS} if event.get("usage") else self.usage
        for choice in event["choices"]:
            self.text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            self.finish = choice["finish_reason"] or self.finish
            self.chunks += 1


async def test_streams_of_an_adapter_go_on_token_for_token(hand, servers, adapters, http) -> None:
    """The connection to the first server is cut anywhere; the second one has the rest."""
    a, b = servers[:2]
    chosen = [adapters[0], adapters[3]]
    for server in (a, b):
        await hand.start(server, chosen)
    uncut = {
        (adapter.name, chat): await Uncut().read(http, f"http://{a.address}", adapter.served_as, chat=chat)
        for adapter in chosen
        for chat in (False, True)
    }
    assert len({each.text for each in uncut.values()}) == 4
    await hand.route(b, chosen)
    rng, table, held = random.Random(5), hand.gateway.lane.table, tuple(map(held_as, chosen))
    continued = 0
    for number in range(CUTS):
        cable = Relay(a.port)
        await cable.start()
        first = TargetSpec(id=f"a{number}", address=cable.address, build=BUILD, adapters=held)
        second = TargetSpec(id="b", address=b.address, build=BUILD, adapters=held)
        await hand.gateway.push(first, second)
        await hand.until(lambda rows, n=first.id: rows[n]["state"] == "healthy" and rows[n]["continuation"])
        other = next(entry for entry in table if entry.spec.id == "b")
        table.take(other)  # so the first gets the request
        adapter, chat, stream = rng.choice(chosen), rng.random() < 0.5, Uncut()
        cut_at = rng.randrange(1, 60)
        reading = asyncio.create_task(
            stream.read(http, hand.gateway.url, adapter.name, chat=chat, cut_at=cut_at)
        )
        await stream.reached.wait()
        cable.cut()
        await reading
        table.give(other)
        await cable.close()
        whole = uncut[adapter.name, chat]
        assert (stream.text, stream.finish) == (whole.text, whole.finish), f"cut {number} at {cut_at}"
        assert (stream.usage, stream.models) == (whole.usage, {adapter.name})
        continued += stream.seams
    assert continued >= CUTS // 2
    assert hand.gateway.lane.adapters.of("lora-0").lacking == 0


async def test_eight_adapters_are_kept_equal_through_everything(hand, servers, adapters, http) -> None:
    old, new = adapters[:8], adapters[8]
    for node in servers[:3]:
        await hand.join(node, old)
    said = await texts_of(http, servers[0], ["tiny", *(each.served_as for each in old)], TOKENS)
    assert len(set(said)) == 9
    texts = dict.fromkeys(("tiny", *NAMES))
    async with Clients(hand.gateway.url, texts, count=4, tokens=TOKENS) as clients:
        await clients.some()
        await hand.replace("a", servers[3], old)
        await clients.some()
        await hand.swap(old[3], new)
        await clients.some()
        now = [new if each.name == new.name else each for each in old]
        await hand.forget("b", now, clients)
    assert clients.failed == []
    assert set(clients.whole) == {"tiny", *NAMES}
    state = await hand.gateway.state()
    assert state["totals"]["streams_cut"] == state["totals"]["requests_client_error"] == 0
    lacking = sum(use.lacking for _, use in hand.gateway.lane.adapters)
    assert lacking > 0
    assert (await texts_of(http, hand.nodes["b"], [new.served_as], TOKENS))[0] not in said
