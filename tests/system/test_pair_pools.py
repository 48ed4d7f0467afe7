"""A pair of daemons with two pools and one gateway: the one that takes over keeps and serves both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio
from daemon_pair import LEASE, Host, Pair, pair_on

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]

BOOT_DELAY = 1.0  # long enough to fail in the middle of a swap
MODELS = {"chat": "simulated", "batch": "batch"}
EACH = 2  # machines asked for when a node has a notice: its on-demand cover and its spot successor
OF_THE_PROCESS = ("listen", "metrics_listen", "socket")


def two_pools(tables: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """The tables of a file with the pool "test", with two pools like it on one gateway in its place."""
    found: dict[str, dict[str, object]] = {"daemon": dict(tables["daemon"])}
    found["gateway"] = {key: tables["pool.test.gateway"][key] for key in OF_THE_PROCESS}
    for pool, model in MODELS.items():
        for table in (table for table in tables if table.startswith("pool.test")):
            found[table.replace("pool.test", f"pool.{pool}")] = dict(tables[table])
        # The one on-demand machine is the cover of a noticed node, so which machines stay is certain.
        found[f"pool.{pool}"] |= {"model": model, "replicas": 3, "on_demand_floor": 0}
        found[f"pool.{pool}.gateway"] = {
            key: value for key, value in tables["pool.test.gateway"].items() if key not in OF_THE_PROCESS
        }
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def pair(
    postgres: Any,
    tmp_path_factory: pytest.TempPathFactory,
    toml_writer: Callable[..., None],
    stack_in: Callable[..., Any],
) -> AsyncIterator[Pair]:
    async with stack_in(tmp_path_factory.mktemp("pair"), {}, BOOT_DELAY, ("local-cloud",)) as stack:
        stack.write(two_pools(stack.tables))
        await stack.start("gateway")
        async with pair_on(stack, toml_writer, postgres) as pair:
            yield pair


async def nodes_of(host: Host) -> dict[str, dict[str, Any]]:
    """The nodes that a daemon shows, by pool and id."""
    status = await host.status()
    return {pool["name"]: {node["id"]: node for node in pool["nodes"]} for pool in status["pools"]}


def serving_spot(nodes: Mapping[str, Any]) -> str:
    """One of these nodes that can get a notice and serves."""
    return next(
        n["id"] for n in nodes.values() if (n["market"], n["phase"], n["attached"]) == ("spot", "ready", True)
    )


async def test_a_leader_killed_while_a_node_has_a_notice_leaves_both_pools_to_the_other(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    """No machine is launched twice or given up; a notice in the pool that had none is acted on."""
    old, new = await pair.ready()
    stack = pair.stack
    before, seen = await nodes_of(old), await stack.statistics()
    assert {pool: len(nodes) for pool, nodes in before.items()} == {"chat": 3, "batch": 3}
    noticed, other = serving_spot(before["chat"]), serving_spot(before["batch"])

    async with stack.traffic() as chat, stack.traffic(model="batch", seed=2) as batch:
        await stack.admin("reclaim", node=noticed)
        await pair.swap_begun(noticed)
        await old.daemon.kill()
        assert noticed in (await stack.statistics())["live"], "it was killed before the node had gone"
        seconds = await pair.taken_over(new)
        kept, machines = await nodes_of(new), set((await stack.statistics())["live"])
        assert set(before["batch"]) == set(kept["batch"])
        assert set(before["chat"]) - set(kept["chat"]) == {noticed}
        assert machines == set(kept["chat"]) | set(kept["batch"])
        assert len(machines - set(seen["live"])) == 1, "one machine replaces one"
        assert (await stack.statistics())["launches"] == seen["launches"] + EACH

        await stack.admin("reclaim", node=other)
        await stack.until(f"{other} gets no new requests", lambda: pair.drains(other, "batch"))
        await pair.swap_begun(other)

        async def gone() -> bool:
            return other not in (await stack.statistics())["live"]

        await stack.until(f"{other} is gone", gone)
        await stack.settled()
        for traffic in (chat, batch):
            await traffic.answers(10)
    record_property("takeover_s", round(seconds, 2))
    print(f"both pools taken over after {seconds:.1f} s, lease {LEASE:g} s")
    for traffic in (chat, batch):
        assert traffic.report.failures == {}
        assert traffic.report.streams_cut == 0
    after = await nodes_of(new)
    assert set(after["chat"]) == set(kept["chat"])
    assert set(kept["batch"]) - set(after["batch"]) == {other}
    assert len(after["batch"]) == 3
    assert (await stack.statistics())["launches"] == seen["launches"] + 2 * EACH
    assert pair.late(old, new) == [], "two daemons acted by turns"
    await pair.obeyed(new)
    await pair.nothing_twice()

    done = await stack.cli("status", "-o", "json", config=new.config)
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["daemon"]["leading"] is True
    states = {pool["name"]: (pool["state"], len(pool["nodes"])) for pool in shown["pools"]}
    assert states == {"chat": ("ok", 3), "batch": ("ok", 3)}

    pair.record.clear()
    await old.daemon.start()

    async def stands_by() -> bool:
        view = await old.status()
        said = f"pid {shown['daemon']['pid']} on "
        return bool(
            view and not view["daemon"]["leading"] and (view["daemon"]["leader"] or "").startswith(said)
        )

    await stack.until("the one that was killed stands by", stands_by)
    await stack.turns(10)
    assert (await old.status())["pools"] == []
    assert (await new.status())["daemon"]["epoch"] == shown["daemon"]["epoch"]
    assert not any(who == old.name for who, _ in pair.record)
    assert {pool: set(nodes) for pool, nodes in (await nodes_of(new)).items()} == {
        pool: set(nodes) for pool, nodes in after.items()
    }
