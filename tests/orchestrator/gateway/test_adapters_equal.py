"""Eight adapters on three nodes under load: one node replaced, one adapter swapped, one node started again
behind everybody's back. No client notices.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from policies.held import Adapter
from tests.support.adapter_pool import PATIENCE, Clients, Hand, asked, held_as, texts_of
from tests.support.gateway_rig import Engine

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

ADAPTERS = [Adapter(name=f"lora-{number}", source=f"/srv/lora/{number}@v1") for number in range(8)]
NAMES = tuple(adapter.name for adapter in ADAPTERS)
NEW = Adapter(name="lora-3", source="/srv/lora/3-new@v2")
TOKENS = 40
PACE = ("--served-model-name", "base", "--tokens-per-second", "400", "--time-to-first-token", "0.01")
MORE = ("--max-num-seqs", "64", "--shutdown-timeout", "30", "--adapter-load-time", "0.02")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


@pytest.fixture
async def engines(tmp_path):
    """Make a simulated engine: `engines("a")`."""
    made = []

    def make(name: str, *options: str) -> Engine:
        made.append(Engine(name, tmp_path, (*PACE, *MORE, *options)))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


@pytest.fixture
async def hand(gateways, http) -> Hand:
    running = await gateways(pool="test", served="base", loaded=NAMES, queue_deadline=60.0)
    return Hand(running, http)


async def test_eight_adapters_are_kept_equal_through_everything(hand, engines, http) -> None:
    nodes = [engines(name) for name in "abc"]
    for node in nodes:
        await hand.join(node, ADAPTERS)
    first = nodes[0]
    said = await texts_of(http, first, ["base", *(each.served_as for each in ADAPTERS)], TOKENS)
    texts = {name: {text} for name, text in zip(("base", *NAMES), said, strict=True)}
    assert len({text for each in texts.values() for text in each}) == 9
    await hand.load(first, [NEW])
    (new,) = await texts_of(http, first, [NEW.served_as], TOKENS)
    await hand.unload(first, NEW)
    assert new not in said
    async with Clients(hand.gateway.url, texts, count=12, tokens=TOKENS) as clients:
        await clients.some()
        await hand.replace("a", engines("d"), ADAPTERS)
        await clients.some()
        texts["lora-3"].add(new)
        await hand.swap(ADAPTERS[3], NEW)
        await clients.some()
        now = [NEW if each.name == NEW.name else each for each in ADAPTERS]
        texts["lora-3"] = {text for text in texts["lora-3"] if text == new}
        await hand.forget("b", now, clients)
    assert clients.failed == []
    assert set(clients.whole) == {"base", *NAMES}
    state = await hand.gateway.state()
    assert state["totals"]["streams_cut"] == state["totals"]["requests_client_error"] == 0
    assert {name: row["cold"] for name, row in state["adapters"].items()} == dict.fromkeys(NAMES, False)


async def streamed(http, url, model, tokens, began: asyncio.Event) -> tuple[str, str]:
    """A stream's text and the comment at its seam, if there was one."""
    body = {"model": model, "prompt": "tell me", "max_tokens": tokens, "temperature": 0, "stream": True}
    text, seam, ended = "", "", ""
    async with http.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for raw in answer.content:
            line = raw.decode().strip()
            seam = line if line.startswith(":") else seam
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, line
                assert event["model"] == model
                text += event["choices"][0]["text"]
                ended = event["choices"][0]["finish_reason"] or ended
                began.set()
    assert ended == "length"
    return text, seam


async def whole(http, node, model, tokens) -> str:
    return (await streamed(http, f"http://{node.address}", model, tokens, asyncio.Event()))[0]


SLOW = ("--tokens-per-second", "40")
OLD = ADAPTERS[3]


async def test_a_stream_goes_on_at_a_holder_of_the_same_revision_and_ends_as_if_nothing_was(
    hand, engines, http
) -> None:
    a, b, c = engines("a", *SLOW), engines("b", *SLOW), engines("c", *SLOW)
    await hand.join(a, [OLD])
    await hand.start(b, [NEW])
    await hand.start(c, [OLD])
    expected = await whole(http, a, OLD.served_as, 150)
    began = asyncio.Event()
    stream = asyncio.create_task(streamed(http, hand.gateway.url, "lora-3", 150, began))
    await began.wait()
    await hand.route(b, [NEW])
    await hand.route(c, [OLD])
    await a.kill()
    text, seam = await stream
    assert (text, seam) == (expected, ": continued")
    assert (await hand.gateway.targets())["c"]["in_flight"] == 0


async def test_a_stream_waits_for_its_adapter_to_be_loaded_elsewhere(hand, engines, http) -> None:
    a, b = engines("a", *SLOW), engines("b", *SLOW)
    await hand.join(a, [OLD])
    await hand.join(b, [])
    expected = await whole(http, a, OLD.served_as, 150)
    began = asyncio.Event()
    stream = asyncio.create_task(streamed(http, hand.gateway.url, "lora-3", 150, began))
    await began.wait()
    await a.kill()

    async def cold() -> bool:
        return bool((await hand.gateway.state())["adapters"]["lora-3"]["cold"])

    async with asyncio.timeout(PATIENCE):
        while not await cold():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await hand.load(b, [OLD])
    await hand.tell(b=[held_as(OLD)])
    text, seam = await stream
    assert (text, seam) == (expected, ": continued")


async def test_one_that_freezes_with_the_only_copy_is_left_once_another_has_it(hand, engines, http) -> None:
    """Plain requests and streams: what the frozen node held ends elsewhere, each as it would have there."""
    a, b = engines("a", *SLOW), engines("b", *SLOW)
    await hand.join(a, [OLD])
    await hand.join(b, [])
    expected = await whole(http, a, OLD.served_as, 150)
    began = asyncio.Event()
    stream = asyncio.create_task(streamed(http, hand.gateway.url, "lora-3", 150, began))
    await began.wait()
    plain = asyncio.create_task(asked(http, hand.gateway.url, "lora-3", 150, prompt="tell me"))
    await hand.until(lambda rows: rows["a"]["in_flight"] == 2)
    a.freeze()
    await hand.until(lambda rows: rows["a"]["in_flight"] == 0)
    await hand.load(b, [OLD])
    await hand.tell(b=[held_as(OLD)])
    assert (await stream)[0] == expected
    assert (await plain)[:2] == (200, expected)


async def test_a_stream_whose_revision_is_nowhere_any_more_ends_typed_and_soon(hand, engines, http) -> None:
    a, b = engines("a", *SLOW), engines("b", *SLOW)
    await hand.join(a, [OLD])
    await hand.start(b, [NEW])
    began = asyncio.Event()
    body = {"model": "lora-3", "prompt": "tell me", "max_tokens": 150, "temperature": 0, "stream": True}

    async def cut() -> str:
        async with http.post(f"{hand.gateway.url}/v1/completions", json=body) as answer:
            said = await answer.content.readany()
            began.set()
            return (said + await answer.read()).decode()

    stream = asyncio.create_task(cut())
    await began.wait()
    await hand.route(b, [NEW])
    await a.kill()
    said = await stream
    assert '"code":"stream_interrupted"' in said
    assert "lora-3@" not in said


async def test_a_node_that_lost_the_adapter_is_passed_over_by_a_stream_that_goes_on(
    hand, engines, http
) -> None:
    """The first that is asked for the rest answers 404."""
    a, b, c = engines("a", *SLOW), engines("b", *SLOW), engines("c", *SLOW)
    await hand.join(a, [OLD])
    await hand.start(b, [])
    await hand.start(c, [OLD])
    expected = await whole(http, a, OLD.served_as, 150)
    began = asyncio.Event()
    stream = asyncio.create_task(streamed(http, hand.gateway.url, "lora-3", 150, began))
    await began.wait()
    await hand.route(b, [OLD])
    await hand.route(c, [OLD])
    hand.gateway.lane.table.take(
        next(e for e in hand.gateway.lane.table if e.spec.id == "c")
    )  # b comes first
    await a.kill()
    text, _ = await stream
    assert text == expected
    assert hand.gateway.lane.adapters.of("lora-3").lacking == 1
