"""Several pools in one daemon: what happens in one of them does not happen to the others."""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from scenarios import PACE, config, sales
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from cloud.sim.balancer import Traffic
from cloud.sim.effects import Effect, Moment
from orchestrator.config.load import Config
from orchestrator.daemon import leaving
from orchestrator.daemon.daemon import Daemon
from orchestrator.loop.loop import Loop
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import Simulation, Wrap
from orchestrator.wiring.ports import Ports
from policies.decide import decide_for
from policies.events import AlarmRaised, Event, Paused, PoolRemoved
from policies.model import Market

PAIR = ("p", "q")


def simulate(
    folder: Path, *, wrap: Wrap | None = None, pools: Sequence[str] = PAIR, **more: Any
) -> Simulation:
    return Simulation(
        config(folder, pools=pools, **more),
        sales=sales(),
        pace=PACE,
        traffic=Traffic(per_second=2.0),
        wrap=wrap,
    )


async def whole(sim: Simulation) -> Daemon:
    """A daemon with its pools whole."""
    sim.furnish()
    process = sim.boot()
    await sim.settle()
    return process.daemon


def noticed(sim: Simulation, pool: str) -> str:
    """A spot node of a pool gets a minute's notice."""
    found = sim.pools[pool]
    node = next(m.id for m in found.world.of(pool) if m.live and m.placement.market is Market.SPOT)
    found.board.reclaim(node, after=60.0, notice=60.0)
    return node


def watch_detach(sim: Simulation, pool: str, found: list[float]) -> None:
    """Note when a node of the pool first leaves the set of those that get requests."""
    table = sim.pools[pool].table
    began = {node for node, spec in table.targets.items() if spec.phase == "active"}

    def look(effect: Effect, moment: Moment) -> None:
        active = {node for node, spec in table.targets.items() if spec.phase == "active"}
        if effect.kind == "apply" and moment is Moment.AFTER and began - active and not found:
            found.append(sim.clock.now())

    sim.pools[pool].world.effects.watchers.append(look)


def fails(monkeypatch: pytest.MonkeyPatch, *pools: str) -> set[str]:
    """Decisions for these pools raise, as long as the pool is in the set."""
    bad = set(pools)

    def decide(fleet: Any, world: Any, memory: Any) -> Any:
        if fleet.pool.name in bad:
            raise ZeroDivisionError("planted")
        return decide_for(fleet, world, memory)

    monkeypatch.setattr("orchestrator.loop.loop.decide_for", decide)
    return bad


async def alarms(process: Any, pool: str) -> list[str]:
    entries = await process.stores[-1].events(pool=pool, limit=10_000)
    return [e.body.decode() for e in entries if e.kind == AlarmRaised.__name__]


def detach_seconds(folder: Path, trouble: Callable[[Simulation], object]) -> float:
    """From a notice in one pool to its detachment, while the other is in trouble."""
    folder.mkdir()
    found: list[float] = []
    seconds: list[float] = []

    async def script(sim: Simulation) -> None:
        await whole(sim)
        trouble(sim)
        await sim.clock.sleep(10.0)
        watch_detach(sim, "q", found)
        began = sim.clock.now()
        noticed(sim, "q")
        await sim.clock.sleep(30.0)
        seconds.append(found[0] - began)

    simulate(folder).run(script)
    return seconds[0]


def test_what_is_logged_of_a_pool_names_it(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        await whole(sim)
        noticed(sim, "q")
        await sim.clock.sleep(30.0)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with capture_logs(processors=[merge_contextvars]) as lines:
        simulate(tmp_path).run(script)
    logged = {(line["event"], line.get("kind"), line.get("pool")) for line in lines}
    assert {pool for event, _, pool in logged if event == "state.changed"} == {"p", "q"}
    assert {pool for event, kind, pool in logged if (event, kind) == ("action.decided", "launch")} == {"q"}
    assert {pool for event, kind, pool in logged if (event, kind) == ("action.decided", "detach")} == {"q"}


def test_an_exception_in_one_pool_reaches_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = fails(monkeypatch)
    kept: dict[str, Any] = {}

    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        process = sim.running
        assert process is not None
        before = {name: {m.id for m in pool.world.of(name) if m.live} for name, pool in sim.pools.items()}
        loop = daemon.runs["q"].loop
        bad.add("p")
        await sim.clock.sleep(45.0)
        run = daemon.runs["p"]
        kept["down"] = run.why_down()
        kept["failures"] = run.failures
        assert daemon.runs["q"].loop is loop, "the other one went on as it was"
        assert {m.id for m in sim.pools["p"].world.of("p") if m.live} == before["p"], "its nodes stay"
        node = noticed(sim, "q")
        await sim.clock.sleep(20.0)
        spec = sim.pools["q"].table.targets.get(node)
        assert spec is None or spec.phase == "draining", "the other one acts"
        bad.clear()
        await sim.settle()
        assert not run.why_down()
        assert (await alarms(process, "q")) == []
        kept["alarms"] = await alarms(process, "p")
        assert process.ended == ""

    outcome = simulate(tmp_path).run(script)
    assert {b.name for b in outcome.broken} <= {"replay"}, "a turn that raised is decided now"
    assert "loop failed: ZeroDivisionError: planted" in kept["down"]
    assert 3 <= kept["failures"] <= 8, "it is begun again, and less often each time"
    assert len(kept["alarms"]) == 1, "failures that follow each other are told once"
    assert "pool-failed" in kept["alarms"][0]


@pytest.mark.parametrize("last", ["the last one that turns", "the only one"])
def test_a_daemon_none_of_whose_pools_turns_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    bad = fails(monkeypatch)

    async def script(sim: Simulation) -> None:
        await whole(sim)
        process = sim.running
        assert process is not None
        if last != "the only one":
            bad.add("p")
            await sim.clock.sleep(30.0)
            assert process.ended == ""
        bad.update(sim.pools)
        await sim.clock.sleep(30.0)
        bad.clear()
        assert "loop failed: ZeroDivisionError: planted" in process.ended
        sim.boot()
        await sim.settle()

    pools = ("p",) if last == "the only one" else PAIR
    outcome = simulate(tmp_path, pools=pools).run(script)
    assert [b.name for b in outcome.broken] == ["daemon-lives"]


def test_a_notice_waits_for_no_trouble_of_another_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, beside one whose decisions raise, and beside one whose every call hangs for ever."""
    bad = fails(monkeypatch)

    def hangs(sim: Simulation) -> None:
        for run in sim.running.daemon.runs.values() if sim.running is not None else ():
            if run.name == "p" and run.ports is not None:
                for port in (run.ports.instances, run.ports.balancers[0], run.ports.engine):
                    for call in ("list", "launch", "terminate", "observe", "apply", "probe"):
                        if hasattr(port, call):
                            monkeypatch.setattr(port, call, lambda *_, **__: asyncio.Event().wait())

    alone = detach_seconds(tmp_path / "alone", lambda _: None)
    for name, trouble in (("raises", lambda _: bad.add("p")), ("hangs", hangs)):
        bad.clear()
        assert detach_seconds(tmp_path / name, trouble) == pytest.approx(alone, abs=0.2), name
    assert alone < 1.0


def test_a_loop_that_stands_still_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck: set[str] = set()
    real = Loop.turn

    async def turn(self: Loop) -> Any:
        if self.pool.name in stuck:
            stuck.discard(self.pool.name)
            await asyncio.Event().wait()
        return await real(self)

    monkeypatch.setattr(Loop, "turn", turn)
    seen: list[str] = []

    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        stuck.add("p")
        while not daemon.runs["p"].failures:
            await sim.clock.sleep(0.25)
            seen.append(daemon.runs["p"].why_down())
        await sim.settle()
        assert not daemon.runs["p"].why_down()
        assert daemon.runs["q"].failures == 0

    assert simulate(tmp_path).run(script).broken == ()
    assert any(text.startswith("its loop has not turned for 60 s") for text in seen)
    assert not seen[0].startswith("its loop has not turned for")


def test_a_frozen_process_finds_no_loop_at_a_standstill(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        assert sim.running is not None
        sim.freeze(sim.running)
        await sim.clock.sleep(300.0)
        sim.thaw(sim.running)
        await sim.settle()
        assert [run.failures for run in daemon.runs.values()] == [0, 0]

    assert simulate(tmp_path).run(script).broken == ()


def test_a_pool_whose_ports_cannot_be_made_is_tried_again_beside_others(tmp_path: Path) -> None:
    missing = [True]

    def wrap(ports: Ports) -> Ports:
        if missing and ports.balancers[0].name.endswith("-q"):
            raise FileNotFoundError(2, "no such file", "the.key")
        return ports

    async def script(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.clock.sleep(30.0)
        run = process.daemon.runs["q"]
        assert "the.key: cannot be read" in run.why_down()
        assert not process.daemon.runs["p"].why_down()
        missing.clear()
        await sim.settle()
        assert not run.why_down()

    assert simulate(tmp_path, wrap=wrap).run(script).broken == ()


def test_a_daemon_with_no_pool_that_can_begin_does_not_start(tmp_path: Path) -> None:
    def wrap(_: Ports) -> Ports:
        raise FileNotFoundError(2, "no such file", "the.key")

    async def script(sim: Simulation) -> None:
        process = sim.boot()
        await sim.clock.sleep(5.0)
        assert process.ended == "the.key: cannot be read (no such file or directory)"

    simulate(tmp_path, wrap=wrap).run(script)


def test_a_daemon_without_a_pool_lives(tmp_path: Path) -> None:
    both = config(tmp_path, pools=PAIR)
    none = replace(both, pools={})

    async def script(sim: Simulation) -> None:
        sim.config = none
        process = sim.boot()
        await sim.clock.sleep(300.0)
        assert process.ended == ""
        view = process.daemon.describe()
        assert (view["turns"], view["leading"], view["journal_ok"]) == (0, True, True)
        sim.loop.spawn(process.name, process.daemon.reloader.reload(lambda: both))
        await sim.settle()

    sim = Simulation(both, sales=sales(), pace=PACE)
    assert sim.run(script).broken == ()


class HangingStore(RecordedStore):
    """A journal whose one writing thread is held up once `hangs` is set, by whatever pool."""

    hangs = False

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        while HangingStore.hangs:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.5)
        await super().append(pool, events)


def test_a_notice_waits_for_no_journal_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the balancer at once; nothing is launched or ended meanwhile, and all is written later."""
    monkeypatch.setattr(HangingStore, "hangs", False)

    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        launches = [pool.world.launches for pool in sim.pools.values()]
        for warning in (0.0, 7.0):  # the journal hangs before the notice, or has for a while
            HangingStore.hangs = True
            await sim.clock.sleep(warning)
            found: list[float] = []
            watch_detach(sim, "q", found)
            began = sim.clock.now()
            noticed(sim, "q")
            await sim.clock.sleep(20.0)
            assert found, "it was let go"
            assert found[0] - began < 1.0
            assert [pool.world.launches for pool in sim.pools.values()] == launches
            HangingStore.hangs = False
            await sim.settle()
            launches = [pool.world.launches for pool in sim.pools.values()]
        assert all(run.loop is not None and run.loop.settled for run in daemon.runs.values())

    sim = Simulation(
        config(tmp_path, pools=PAIR),
        sales=sales(),
        pace=PACE,
        traffic=Traffic(per_second=2.0),
        store=HangingStore,
    )
    outcome = sim.run(script)
    assert {b.name for b in outcome.broken} <= {"replenished", "wanted"}, outcome.broken


class SlowStore(RecordedStore):
    """A journal on a busy disk: every write takes `takes` seconds."""

    takes = 0.0

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        await asyncio.sleep(SlowStore.takes)
        await super().append(pool, events)


def test_a_journal_that_is_slow_is_not_told_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notices go on without it, and neither the state of a pool nor an alarm says that it is not written."""
    told: list[tuple[str, bool]] = []
    found: list[float] = []

    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        monkeypatch.setattr(SlowStore, "takes", 0.3)
        process = sim.running
        assert process is not None
        for _ in range(3):
            found.clear()
            watch_detach(sim, "q", found)
            began = sim.clock.now()
            noticed(sim, "q")
            for _ in range(400):
                await sim.clock.sleep(0.05)
                told.extend((run.name, run.last.world.durable) for run in daemon.runs.values() if run.last)
            assert found[0] - began < 0.3, "it waited for no write"
            await sim.settle()
        for pool in PAIR:
            entries = await process.stores[-1].events(pool=pool, limit=10_000)
            assert not [e for e in entries if b"journal cannot be written" in e.body]

    sim = Simulation(
        config(tmp_path, pools=PAIR),
        sales=sales(),
        pace=PACE,
        traffic=Traffic(per_second=2.0),
        store=SlowStore,
    )
    outcome = sim.run(script)
    assert set(told) == {("p", True), ("q", True)}
    assert outcome.broken == ()


# -- pools come and go ---------------------------------------------------------------------------------


async def reloaded(sim: Simulation, new: Config, **how: bool) -> Any:
    process = sim.running
    assert process is not None
    return await sim.loop.spawn(process.name, process.daemon.reloader.reload(lambda: new, **how))


def living(sim: Simulation, pool: str) -> Counter[str]:
    return Counter(str(m.placement.market) for m in sim.pools[pool].world.of(pool) if m.live)


def test_a_pool_is_removed_only_by_force_and_by_draining_its_nodes(tmp_path: Path) -> None:
    told: dict[str, Any] = {}

    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        process = sim.running
        assert process is not None
        less = sim.config.only("p")
        refused = await reloaded(sim, less)
        told["refused"] = [problem["text"] for problem in refused["problems"]]
        assert refused["outcome"] == "rejected"
        dry = await reloaded(sim, less, dry_run=True, force=True)
        told["size"], told["plan"] = dry["size"], dry["plan"]
        await sim.clock.sleep(30.0)
        assert living(sim, "q") == living(sim, "p") == {"spot": 2, "on-demand": 2}
        assert (await reloaded(sim, less, force=True))["outcome"] == "applied"
        for _ in range(600):
            await sim.clock.sleep(1.0)
            if "q" not in daemon.runs:
                break
        assert "q" not in daemon.runs
        assert living(sim, "q") == {}
        assert sim.pools["q"].table.targets == {}
        kinds = [e.kind for e in await process.stores[-1].events(pool="q", limit=10_000)]
        assert kinds[-1] == PoolRemoved.__name__
        assert (await process.stores[-1].load("q")).nodes == {}
        assert await process.stores[-1].leaving() == {}
        assert living(sim, "p") == {"spot": 2, "on-demand": 2}
        assert (await reloaded(sim, sim.config))["outcome"] == "applied"
        await sim.settle()
        assert living(sim, "q") == {"spot": 2, "on-demand": 2}

    outcome = simulate(tmp_path).run(script)
    (text,) = told["refused"]
    assert text.startswith("it ends for good: its 4 nodes, $")
    assert "an hour, drain and are ended; if that is meant, `orchestrator reload --force" in text
    assert told["size"].startswith("q: its 4 nodes")
    assert told["plan"]["name"] == "q"
    assert {a["kind"] for a in told["plan"]["actions"]} == {"drain", "detach"}
    harmed = {"drain-first", "detach-first", "nothing-unhandled", "daemon-lives", "one-per-token"}
    assert not [b for b in outcome.broken if b.name in harmed]


@pytest.mark.parametrize("back", [False, True])
def test_a_removal_goes_on_after_a_kill_unless_the_pool_is_back(tmp_path: Path, back: bool) -> None:
    """The file that the next daemon reads does not have it any more: its journal does."""

    async def script(sim: Simulation) -> None:
        await whole(sim)
        first = sim.running
        assert first is not None
        both, sim.config = sim.config, sim.config.only("p")
        await reloaded(sim, sim.config, force=True)
        await sim.clock.sleep(4.0)
        assert first.daemon.runs["q"].leaving
        sim.kill(first)
        if back:
            sim.config = both
        second = sim.boot()
        await sim.clock.sleep(4.0)
        assert second.daemon.runs["q"].leaving is not back
        for _ in range(600):
            await sim.clock.sleep(1.0)
            if "q" not in second.daemon.runs:
                break
        if back:
            await sim.settle()
        assert living(sim, "q") == ({"spot": 2, "on-demand": 2} if back else {})
        assert second.daemon.describe()["config"]["rejected"] is None

    simulate(tmp_path).run(script)


def test_a_pool_that_comes_back_while_it_leaves_stays(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        both = sim.config
        await reloaded(sim, both.only("p"), force=True)
        await sim.clock.sleep(3.0)
        await reloaded(sim, both)
        await sim.settle()
        assert not daemon.runs["q"].leaving
        assert sim.running is not None
        assert await sim.running.stores[-1].leaving() == {}
        assert living(sim, "q") == {"spot": 2, "on-demand": 2}

    simulate(tmp_path).run(script)


def test_a_pool_that_is_in_no_file_is_told_of_and_left_alone(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        await whole(sim)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.config = sim.config.only("p")
        process = sim.boot()
        await sim.clock.sleep(60.0)
        rejected = process.daemon.describe()["config"]["rejected"]
        assert rejected is not None
        assert "pool q: is in the journal with 4 nodes and not in the file" in rejected["problems"][0]
        assert living(sim, "q") == {"spot": 2, "on-demand": 2}

    simulate(tmp_path).run(script)


def test_the_settings_of_a_pool_that_leaves_come_back_as_they_were(tmp_path: Path) -> None:
    given = config(tmp_path, pools=PAIR, standby={"stopped": 1}, limits={"spend_per_hour": 21.6}).only("q")
    text = leaving.encode(given)
    again = leaving.decode(text, "q", given)
    assert again.wanted == given.wanted
    assert again.pool.model_dump() == given.pool.model_dump() | {
        key: again.pool.model_dump()[key] for key in ("limits", "standby", "back_to_spot", "drain")
    }
    assert tomllib.loads(text)["pool"].keys() == {"q"}
    with pytest.raises(ValueError, match="q"):
        leaving.decode("[pool.p]", "q", given)


# -- whose machines are whose --------------------------------------------------------------------------


def test_a_pool_knows_whose_a_machine_is_but_while_it_waits_for_one(tmp_path: Path) -> None:
    """A notice may come before a list shows the machine: until then nobody's machine is certainly foreign."""

    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        ports = {name: run.ports for name, run in daemon.runs.items() if run.ports is not None}
        own, foreign = ([m.id for m in sim.pools[name].world.of(name) if m.live] for name in PAIR)
        assert all(map(ports["p"].owned, own))
        assert not any(map(ports["p"].owned, ["i-strange", *foreign]))
        noticed(sim, "p")
        loop = daemon.runs["p"].loop
        assert loop is not None
        while not loop.memory.intents:
            await sim.clock.sleep(0.05)
        assert ports["p"].owned("i-strange"), "it may be the one that is being launched"
        assert not ports["q"].owned("i-strange")
        await sim.settle()
        assert not ports["p"].owned("i-strange")

    assert simulate(tmp_path).run(script).broken == ()


# -- what was there before, and pairs ------------------------------------------------------------------


def test_the_journal_of_a_daemon_with_one_pool_is_taken_over(tmp_path: Path) -> None:
    """Its nodes are still its own, nothing is launched for them, and the second pool begins from nothing."""

    async def script(sim: Simulation) -> None:
        both, sim.config = sim.config, sim.config.only("p")
        sim.pools["p"].furnish()
        first = sim.boot()
        await sim.clock.sleep(60.0)
        loop = first.loop("p")
        assert loop is not None
        known = {*loop.memory.nodes}
        assert len(known) == 4
        sim.kill(first)
        sim.config = both
        second = sim.boot()
        await sim.settle()
        loop = second.loop("p")
        assert loop is not None
        assert {*loop.memory.nodes} == known
        assert (sim.pools["p"].world.launches, sim.pools["q"].world.launches) == (4, 4)

    assert simulate(tmp_path).run(script).broken == ()


def test_a_standby_takes_over_every_pool(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        sim.furnish()
        for host in "ab":
            sim.boot(host=host)
        await sim.settle()
        first = sim.running
        assert first is not None
        standby = next(process for process in sim.processes if process is not first)
        assert standby.daemon.runs == {}
        nodes = [noticed(sim, name) for name in sim.pools]
        sim.kill(first)
        await sim.settle()
        assert sim.running is standby
        assert standby.daemon.runs.keys() == sim.pools.keys()
        assert not any(pool.world.machines[n].live for n, pool in zip(nodes, sim.pools.values(), strict=True))

    assert simulate(tmp_path).run(script).broken == ()


def test_without_their_database_all_pools_still_take_noticed_nodes_out(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        sim.furnish()
        for host in "ab":
            sim.boot(host=host)
        await sim.settle()
        sim.database.lose()
        await sim.clock.sleep(2.0 * sim.config.daemon.lease)
        nodes = {name: noticed(sim, name) for name in sim.pools}
        await sim.clock.sleep(10.0)
        for name, node in nodes.items():
            assert sim.pools[name].table.targets[node].phase == "draining", name
        sim.database.regain()
        await sim.settle()

    assert simulate(tmp_path).run(script).broken == ()


# -- what is one pool's --------------------------------------------------------------------------------


def test_a_pause_of_one_pool_pauses_no_other(tmp_path: Path) -> None:
    async def script(sim: Simulation) -> None:
        daemon = await whole(sim)
        await sim.operate(lambda now: Paused(at=now, by="me", reason="r", until=None), "p")
        await sim.clock.sleep(5.0)
        last = {name: run.last for name, run in daemon.runs.items()}
        assert [turn is not None and turn.memory.pause is not None for turn in last.values()] == [True, False]
        assert daemon.describe()["paused"] is None, "not all are"
        sim.kill(sim.running)  # type: ignore[arg-type]
        process = sim.boot()
        await sim.clock.sleep(10.0)
        assert [r.loop.memory.pause is not None for r in process.daemon.runs.values() if r.loop] == [
            True,
            False,
        ]

    simulate(tmp_path).run(script)
