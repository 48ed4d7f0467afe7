"""The API, the gauges and the command line's tables with several pools, with one and with none."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from prometheus_client import generate_latest

from cloud.sim.world import Pace, Sale
from orchestrator.api.api import Api, Refused
from orchestrator.api.gauges import Gauges
from orchestrator.config.load import build_config
from orchestrator.metrics import metrics
from orchestrator.render import render
from orchestrator.render.parts import Look
from orchestrator.simulation.simulate import Simulation
from policies.decide import decide_for
from policies.memory import Memory
from policies.model import Market, Placement

pytestmark = pytest.mark.usefixtures("quiet")

Ask = Callable[..., Awaitable[Any]]
Script = Callable[[Simulation, Ask], Awaitable[None]]


def request(query: Mapping[str, str], node: str = "", body: Any = None) -> Any:
    async def read() -> bytes:
        return orjson.dumps(body) if body is not None else b""

    return SimpleNamespace(query=query, match_info={"node": node}, read=read, transport=object())


def play(folder: Path, script: Script, *pools: str) -> None:
    """Run a script with the API of a daemon whose pools are whole."""
    sales = [
        Sale(placement=Placement("sim", "r", zone, "gpu", market), price=1.0 + number, capacity=9)
        for number, market in enumerate(Market)
        for zone in "ab"
    ]
    tables = {name: {"replicas": 4, **({"model": name} if len(pools) > 1 else {})} for name in pools}
    config = build_config({"daemon": {"state_dir": "state", "listen": "off"}, "pool": tables}, base=folder)
    sim = Simulation(config, sales=sales, pace=Pace(boot=(1.0, 2.0), load=(1.0, 2.0), list_lag=(0.1, 0.2)))

    async def run(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.settle()
        daemon = process.daemon
        api = Api(
            runs=daemon.runs,
            store=process.stores[-1],
            clock=sim.clock,
            daemon=daemon.describe,
            gauges=Gauges(runs=daemon.runs, state_dir=config.daemon.state_dir, clock_step=lambda: 0.0),
            reloader=daemon.reloader,
            outside=SimpleNamespace(sight=None, memory=Memory()),
        )

        async def ask(what: str, *, node: str = "", body: Any = None, **query: str) -> Any:
            found = await sim.loop.spawn(process.name, getattr(api, f"_{what}")(request(query, node, body)))
            return orjson.loads(found.body) if found.content_type == "application/json" else found.text

        await script(sim, ask)
        await sim.stop(process)

    sim.run(run)


async def refused(asked: Awaitable[Any]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        await asked
    return caught.value.status_code, str(caught.value)


def test_what_can_be_told_of_all_pools_is_and_of_one_when_it_is_named(tmp_path: Path) -> None:
    async def script(sim: Simulation, ask: Ask) -> None:
        assert [p["name"] for p in (await ask("status"))["pools"]] == ["chat", "embed"]
        assert [p["name"] for p in (await ask("status", pool="embed"))["pools"]] == ["embed"]
        assert [p["name"] for p in (await ask("plan"))["pools"]] == ["chat", "embed"]
        events = (await ask("events", limit="10000"))["events"]
        assert {event["pool"] for event in events} == {"chat", "embed"}
        alone = (await ask("events", limit="10000", pool="chat"))["events"]
        assert {event["pool"] for event in alone} == {"chat"}
        assert {group["labels"]["pool"] for group in await ask("discovery")} == {"chat", "embed"}
        told = (await ask("explain"))["sentences"]
        assert {sentence.partition(":")[0] for sentence in told} == {"chat", "embed"}
        assert all("embed" not in s for s in (await ask("explain", pool="chat"))["sentences"])
        assert (await ask("explain", subject="chat"))["sentences"][0].startswith("4 nodes are wanted")
        assert (await ask("readyz"), await ask("healthz")) == ("ok\n", "ok\n")
        node = next(m.id for m in sim.pools["embed"].world.of("embed"))
        assert (await ask("node", node=node))["node"]["id"] == node
        status, text = await refused(ask("node", node=node, pool="chat"))
        assert (status, text.startswith(f"no node '{node}' is known")) == (404, True)
        for what in ("status", "plan", "explain", "history", "readyz", "pause"):
            found = await refused(ask(what, pool="chart"))
            assert found == (404, "no pool 'chart' is known; the daemon's pools are chat, embed"), what

    play(tmp_path, script, "chat", "embed")


def test_what_is_asked_of_one_pool_has_to_name_it_or_its_node(tmp_path: Path) -> None:
    async def script(sim: Simulation, ask: Ask) -> None:
        for what in ("pause", "resume"):
            status, text = await refused(ask(what))
            assert (status, text) == (
                400,
                "say which pool is meant (--pool, or ?pool=NAME); the daemon's pools are chat, embed",
            )
        await ask("pause", pool="embed", body={"reason": "r"})
        await sim.clock.sleep(3.0)
        assert [p["state"] for p in (await ask("status"))["pools"]] == ["ok", "paused"]
        await ask("resume", pool="embed")
        node = next(m.id for m in sim.pools["embed"].world.of("embed"))
        await ask("drain", node=node, body={"reason": "r"})
        await sim.clock.sleep(60.0)
        swaps = (await ask("history"))["swaps"]
        assert [(swap["outgoing"], swap["pool"]) for swap in swaps] == [(node, "embed")]
        assert (await ask("history", pool="chat"))["swaps"] == []

    play(tmp_path, script, "chat", "embed")


def test_a_pool_whose_loop_does_not_turn_is_shown_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(fleet: Any, world: Any, memory: Any) -> Any:
        if fleet.pool.name == "embed" and world.now > broken[0]:
            raise ZeroDivisionError("planted")
        return decide_for(fleet, world, memory)

    broken = [float("inf")]
    monkeypatch.setattr("orchestrator.loop.loop.decide_for", decide)

    async def script(sim: Simulation, ask: Ask) -> None:
        def series(name: str, pool: str) -> float | None:
            return metrics.REGISTRY.get_sample_value(f"orchestrator_{name}", {"pool": pool})

        broken[0] = sim.clock.now()
        await sim.clock.sleep(30.0)
        chat, embed = (await ask("status"))["pools"]
        assert (chat["state"], embed["state"], len(embed["nodes"])) == ("ok", "down", 4)
        why = "loop failed: ZeroDivisionError: planted; its nodes stay as they are, and it begins again after"
        assert embed["problems"][0].startswith(f"nothing is decided for this pool: {why}")
        assert chat["problems"] == []
        status, text = await refused(ask("readyz"))
        assert (status, text.startswith("pool embed is down: loop failed")) == (503, True)
        assert await ask("readyz", pool="chat") == "ok\n"
        assert await ask("healthz") == "ok\n", "the process lives as long as one pool turns"
        assert sim.running is not None
        shown = Gauges(runs=sim.running.daemon.runs, state_dir=tmp_path, clock_step=lambda: 0.0)
        shown.publish()
        alarm = {"name": "pool-failed"}
        down = {"state": "down"}
        value = metrics.REGISTRY.get_sample_value
        assert value("orchestrator_alarm", {"pool": "embed", **alarm}) == 1
        assert value("orchestrator_alarm", {"pool": "chat", **alarm}) is None, "it never failed"
        assert value("orchestrator_pool_state", {"pool": "embed", **down}) == 1
        assert value("orchestrator_pool_state", {"pool": "chat", **down}) == 0
        assert (series("pool_failures", "embed") or 0.0) >= 2
        assert (series("last_turn_timestamp_seconds", "chat") or 0.0) > broken[0] + 20.0
        broken[0] = float("inf")
        await sim.settle()
        shown.publish()
        assert value("orchestrator_alarm", {"pool": "embed", **alarm}) == 0

    play(tmp_path, script, "chat", "embed")


def test_series_of_a_removed_pool_go_with_it(tmp_path: Path) -> None:
    async def script(sim: Simulation, ask: Ask) -> None:
        assert sim.running is not None
        daemon, process = sim.running.daemon, sim.running
        shown = Gauges(runs=daemon.runs, state_dir=tmp_path, clock_step=lambda: 0.0)
        shown.publish()
        less = sim.config.only("chat")
        await sim.loop.spawn(process.name, daemon.reloader.reload(lambda: less, force=True))
        while "embed" in daemon.runs:
            await sim.clock.sleep(1.0)
        text = generate_latest(metrics.REGISTRY).decode()
        assert 'pool="embed"' in text
        shown.publish()
        text = generate_latest(metrics.REGISTRY).decode()
        assert 'pool="embed"' not in text
        assert 'orchestrator_pool_state{pool="chat",state="ok"} 1.0' in text
        assert [p["name"] for p in (await ask("status"))["pools"]] == ["chat"]
        assert "pool" not in (await ask("events"))["events"][-1], "as with one pool from the start"

    play(tmp_path, script, "chat", "embed")


def test_with_one_pool_nothing_names_it_where_it_never_did(tmp_path: Path) -> None:
    async def script(sim: Simulation, ask: Ask) -> None:
        node = sim.live()[0].id
        await ask("drain", node=node)
        await sim.clock.sleep(60.0)
        assert all("pool" not in event for event in (await ask("events"))["events"])
        assert all("pool" not in swap for swap in (await ask("history"))["swaps"])
        assert all(not s.startswith("chat:") for s in (await ask("explain"))["sentences"])
        await ask("pause")
        await sim.clock.sleep(3.0)
        assert (await ask("status"))["daemon"]["paused"]["by"] == "operator"

    play(tmp_path, script, "chat")


def test_tables_have_a_column_of_pools_only_where_there_are_several(tmp_path: Path) -> None:
    look = Look(width=200, colour=False, wide=True)
    shown: dict[str, list[str]] = {}

    async def script(sim: Simulation, ask: Ask) -> None:
        names = "+".join(sim.pools)
        await ask("drain", node=sim.live()[0].id)
        await sim.clock.sleep(60.0)
        events, history = await ask("events"), await ask("history")
        shown[names] = [
            render.events(events["events"], look).splitlines()[0],
            render.history(history, look).splitlines()[0],
            render.event_line(events["events"][-1], look),
        ]
        status = render.status(await ask("status"), look)
        assert re.findall(r"(?m)^(\w+)  OK", status) == [*sim.pools]

    for folder, pools in (("one", ("chat",)), ("two", ("chat", "embed"))):
        (tmp_path / folder).mkdir()
        play(tmp_path / folder, script, *pools)
    for alone, several in zip(shown["chat"][:2], shown["chat+embed"][:2], strict=True):
        assert ("POOL" in alone, "POOL" in several) == (False, True)
    assert re.search(r"  (chat|embed) +\w", shown["chat+embed"][2])


def test_what_a_daemon_without_a_pool_is_asked_is_answered(tmp_path: Path) -> None:
    """A route to an API alone needs none."""
    look = Look(width=200, colour=False)

    async def script(sim: Simulation, ask: Ask) -> None:
        assert sim.running is not None
        sim.running.daemon.runs.clear()
        assert (await ask("explain"))["sentences"] == ["The daemon runs no pool."]
        assert "runs no pool" in render.plan(await ask("plan"), look)
        assert "runs no pool" in render.status(await ask("status"), look)
        status, text = await refused(ask("pause"))
        assert (status, text.endswith("; the daemon runs no pool")) == (400, True)

    play(tmp_path, script, "chat")


def test_a_status_says_how_to_resume_the_pool_that_is_paused(tmp_path: Path) -> None:
    look = Look(width=200, colour=False)

    async def script(sim: Simulation, ask: Ask) -> None:
        await ask("pause", pool="embed")
        await sim.clock.sleep(3.0)
        last = render.status(await ask("status"), look).splitlines()[-1]
        assert "orchestrator resume --pool embed" in last
        assert "--pool chat" not in last

    play(tmp_path, script, "chat", "embed")
