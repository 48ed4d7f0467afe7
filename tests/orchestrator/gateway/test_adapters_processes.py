"""Adapters over the lives of a gateway: one that hands over, one that is killed and starts from its file."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from cloud.errors import Uncertain
from policies.held import Adapter
from policies.model import TargetSpec
from tests.support.adapter_pool import PATIENCE, Clients, asked, held_as, texts_of
from tests.support.gateway_rig import Engine, GatewayRig, until

pytestmark = pytest.mark.slow

ADAPTERS = [Adapter(name=name, source=f"/srv/lora/{name}@v1") for name in ("sql", "law", "poem")]
FAST = ("--served-model-name", "base", "--tokens-per-second", "400", "--time-to-first-token", "0.01")
SETTINGS = {
    "pool": "rig",
    "served": "base",
    "loaded": [each.name for each in ADAPTERS],
    "queue_deadline": 60.0,
}
TOKENS = 20


@pytest.fixture
async def pool(tmp_path):
    """A gateway, and two engines of which a has sql and law, b has law."""
    modules = {"a": ADAPTERS[:2], "b": ADAPTERS[1:2]}
    rig = GatewayRig(tmp_path, SETTINGS, kept=True)
    engines = []
    try:
        for name, adapters in modules.items():
            words = [f"{each.served_as}={each.location}" for each in adapters]
            engines.append(Engine(name, tmp_path, (*FAST, "--lora-modules", *words)))
            await engines[-1].start()
        await rig.start()
        await rig.balancer.observe()  # which tells that it reads of adapters
        await rig.apply(
            [
                TargetSpec(
                    id=each.name, address=each.address, adapters=tuple(map(held_as, modules[each.name]))
                )
                for each in engines
            ]
        )
        yield rig, engines
    finally:
        await rig.close()
        for engine in engines:
            await engine.close()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


async def test_an_heir_knows_who_holds_what_and_nobody_notices(pool, http) -> None:
    rig, (a, _) = pool
    said = await texts_of(http, a, ["base", *(each.served_as for each in ADAPTERS[:2])], TOKENS)
    texts = {name: {text} for name, text in zip(("base", "sql", "law"), said, strict=True)}
    async with Clients(rig.url, texts, count=8, tokens=TOKENS) as clients:
        await clients.some()
        for _ in range(2):
            await rig.replace()
            await clients.some()
    assert clients.failed == []
    view = await rig.balancer.observe()
    held = {target.id: [each.name for each in target.adapters or ()] for target in view.targets}
    assert held == {"a": ["sql", "law"], "b": ["law"]}
    assert view.adapters["sql"].asked > 0
    assert view.adapters["sql"].tokens > 0


async def test_one_that_starts_without_a_daemon_goes_by_its_file(pool, http) -> None:
    rig, _ = pool
    await rig.kill()
    await rig.start()
    status, _, names = await asked(http, rig.url, "sql", TOKENS)
    assert (status, names) == (200, {"sql"})


async def test_what_is_cold_is_told_to_the_daemon_until_it_is_held(pool, http) -> None:
    rig, (a, b) = pool
    task = asyncio.create_task(asked(http, rig.url, "poem", TOKENS))

    async def cold() -> bool:
        try:
            return (await rig.balancer.observe()).adapters["poem"].cold
        except Uncertain:
            return False

    await until("poem is cold", cold)
    poem = ADAPTERS[2]
    url = f"http://{b.address}/v1/load_lora_adapter"
    async with http.post(url, json={"lora_name": poem.served_as, "lora_path": poem.location}) as answer:
        assert answer.status == 200
    await rig.apply(
        [
            TargetSpec(id="a", address=a.address, adapters=tuple(map(held_as, ADAPTERS[:2]))),
            TargetSpec(id="b", address=b.address, adapters=tuple(map(held_as, ADAPTERS[1:]))),
        ]
    )
    assert (await task)[0] == 200
    assert not await cold()
