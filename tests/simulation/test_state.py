"""The state directory: two daemons on it, a journal that is broken, lost, full or old, and lists that lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios import PACE, config, place, sales

from cloud.sim.balancer import Traffic
from cloud.sim.effects import Effect, Moment
from cloud.sim.faults import Fault
from orchestrator.daemon.pool_run import SNAPSHOT_EVERY
from orchestrator.simulation.simulate import Simulation
from policies.model import InstanceState, Market, NoticeKind

DESTRUCTIVE = ("launch", "terminate", "stop", "start")


def simulation(folder: Path, *, pool: dict[str, object] | None = None, seed: int = 1) -> Simulation:
    return Simulation(
        config(folder, **(pool or {})),
        sales=sales(),
        seed=seed,
        pace=PACE,
        traffic=Traffic(per_second=2.0),
    )


async def ready(sim: Simulation) -> None:
    """A whole pool under a daemon."""
    sim.furnish()
    sim.boot()
    await sim.settle()


def journal(sim: Simulation) -> Path:
    return sim.config.daemon.state_dir / "journal.db"


def test_the_second_daemon_refuses_and_names_the_first(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        await ready(sim)
        first = sim.running
        second = sim.boot()
        await sim.clock.sleep(5.0)
        assert "another daemon holds the lease: pid " in second.ended
        assert str(sim.config.daemon.state_dir) in second.ended
        assert sim.running is first
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        await sim.settle()
        assert first is not None
        sim.kill(first)
        third = sim.boot()
        await sim.settle()
        assert sim.running is third

    sound(simulation(tmp_path).run(script))


def test_a_daemon_whose_lease_was_taken_while_it_hung_does_nothing_more(tmp_path: Path, sound) -> None:
    """It wakes up with a plan in hand and a journal open: both belong to another daemon now."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        first = sim.running
        assert first is not None
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=120.0, notice=60.0)
        await sim.clock.sleep(60.2)
        sim.freeze(first)
        (sim.config.daemon.state_dir / "lease").unlink()
        second = sim.boot()
        await sim.clock.sleep(5.0)
        assert sim.running is second
        sim.thaw(first)
        await sim.settle()
        assert "another daemon took over" in first.ended
        assert sim.running is second

    digests = set()
    for place_of_state in (tmp_path / "here", tmp_path / "elsewhere"):
        place_of_state.mkdir()
        outcome = simulation(place_of_state).run(script)
        sound(outcome)
        digests.add(outcome.digest)
    assert len(digests) == 1, "what became of the first names its state directory: the run tells where it was"


@pytest.mark.parametrize("ahead", [-86_400.0, -3600.0, 3600.0, 86_400.0])
def test_a_host_whose_clock_is_off_boots_nodes_and_drains_them(tmp_path: Path, sound, ahead: float) -> None:
    async def script(sim: Simulation) -> None:
        sim.ahead = ahead
        sim.boot()
        await sim.settle()
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        await sim.settle()

    outcome = sound(simulation(tmp_path).run(script))
    assert outcome.launches == 6


def test_a_clock_that_was_set_back_between_two_daemons_holds_nothing_up(tmp_path: Path, sound) -> None:
    """What the journal says lies in the future now; no call and no drain waits for that day."""

    async def script(sim: Simulation) -> None:
        sim.ahead = 86_400.0
        await ready(sim)
        sim.world.faults.arm("launch", Fault.LOST, times=2)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        await sim.clock.sleep(0.5)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.ahead = 0.0
        sim.boot()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


def test_an_old_journal_and_a_clock_that_is_behind_begin_no_epoch_again(tmp_path: Path, sound) -> None:
    """Its tokens would be those of the daemon before, whose machines the cloud then gives for new ones."""
    epochs = []

    async def script(sim: Simulation) -> None:
        await ready(sim)
        copy = {}
        for ahead in (0.0, -3600.0, -3600.0):
            process = sim.running
            assert process is not None
            epochs.append(process.stores[-1].epoch)
            sim.kill(process)
            files = list(journal(sim).parent.glob("journal.db*"))
            copy = copy or {file: file.read_bytes() for file in files}
            for file in files:
                file.unlink()
            for file, body in copy.items():
                file.write_bytes(body)
            sim.forget()
            sim.ahead = ahead
            sim.boot()
            await sim.settle()

    sound(simulation(tmp_path).run(script))
    assert epochs == sorted(set(epochs))


def test_a_daemon_that_stops_touches_nothing(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        await ready(sim)
        assert sim.running is not None
        targets = dict(sim.table.targets)
        before = len(sim.effects.log)
        await sim.stop(sim.running)
        await sim.clock.sleep(3600.0)
        assert [e for e in sim.effects.log[before:] if e.kind != "journal"] == []
        assert sim.table.targets == targets
        assert len(sim.live()) == 4
        sim.boot()
        await sim.settle()

    sound(simulation(tmp_path).run(script))


def broken_file(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 400)


def broken_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [broken_file, broken_pages, gone])
@pytest.mark.parametrize("standby", [0, 1])
def test_a_lost_journal_is_rebuilt_by_adoption(tmp_path: Path, sound, harm, standby: int) -> None:
    """In the middle of a swap, nothing is ended or launched before the cloud was seen whole."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        await sim.clock.sleep(40.0)
        serving = {s.id for s in sim.table.active()}
        assert sim.running is not None
        sim.kill(sim.running)
        for part in journal(sim).parent.glob("journal.db-*"):
            part.unlink()
        harm(journal(sim))
        sim.forget()
        sim.world.faults.arm("list", Fault.FAILED, times=3)
        looks: list[Effect] = []
        sim.effects.watchers.append(lambda effect, moment: looks.append(effect))
        began = sim.clock.now()
        process = sim.boot()
        await sim.clock.sleep(1.0)
        assert process.ended == ""
        loop = process.loop(sim.pool.name)
        assert loop is not None
        assert loop.last is not None
        assert loop.last.world.regions["region"].at is None
        assert [e for e in looks if e.kind in DESTRUCTIVE] == []
        assert {s.id for s in sim.table.active()} == serving
        await sim.settle()
        first = min((e.at for e in looks if e.kind in DESTRUCTIVE), default=None)
        assert first is None or first > began + 1.0
        aside = list(journal(sim).parent.glob("journal.db.corrupt-*"))
        assert bool(aside) == (harm is not gone)

    sound(simulation(tmp_path, pool={"standby": {"stopped": standby}}).run(script))


def test_a_standby_at_work_is_not_stopped_when_the_journal_is_lost(tmp_path: Path, sound) -> None:
    """Its tag still says standby; what it does says otherwise."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        node = next(m for m in sim.live() if m.state is InstanceState.STOPPED).id
        for zone in ("a", "b", "c"):
            sim.world.set_capacity(place(Market.SPOT, zone), 0)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
        await sim.clock.sleep(40.0)
        assert node in {s.id for s in sim.table.active()}
        assert sim.running is not None
        sim.kill(sim.running)
        sim.lose_journal()
        stopped: list[str] = []

        def watch(effect: Effect, moment: Moment) -> None:
            if effect.kind in ("stop", "terminate") and moment is Moment.BEFORE:
                machine = sim.world.machine(effect.subject)
                if machine is not None and machine.able(sim.clock.now()) and machine.started_at is not None:
                    stopped.append(effect.subject)

        sim.effects.watchers.append(watch)
        sim.boot()
        await sim.clock.sleep(30.0)
        assert stopped == []
        assert node in {s.id for s in sim.table.active()}
        for zone in ("a", "b", "c"):
            sim.world.set_capacity(place(Market.SPOT, zone), 10)
        await sim.settle()

    sound(simulation(tmp_path, pool={"standby": {"stopped": 1}}).run(script))


async def fill_disk(sim: Simulation, pages: int) -> None:
    """Let the journal's file grow no further: SQLite answers as on a full disk."""
    assert sim.running is not None
    store = sim.running.stores[-1]
    await store._writer.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


def test_with_a_full_disk_notices_drain_and_nothing_is_bought(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        await ready(sim)
        await fill_disk(sim, 1)
        for _ in range(60):  # what is left of the last pages
            await sim.clock.sleep(10.0)
            assert sim.running is not None
            loop = sim.running.loop(sim.pool.name)
            assert loop is not None
            assert loop.last is not None
            if not loop.last.world.durable:
                break
            sim.board.publish("i-9999", deadline=sim.clock.now() + 60.0, name=f"filler {sim.clock.now()}")
        else:
            pytest.fail("the disk never filled")
        before = len(sim.effects.log)
        node = sim.live(Market.SPOT)[0].id
        sim.board.reclaim(node, after=60.0, notice=60.0)
        await sim.clock.sleep(10.0)
        assert node not in {s.id for s in sim.table.active()}
        assert [e for e in sim.effects.log[before:] if e.kind in DESTRUCTIVE] == []
        await sim.clock.sleep(SNAPSHOT_EVERY)
        # Memory holds what the journal lacks: a snapshot of it would count those events twice later.
        assert [e for e in sim.effects.log[before:] if e.subject == "snapshot"] == []
        await fill_disk(sim, 1_000_000)
        await sim.settle()
        assert [e for e in sim.effects.log[before:] if e.kind == "launch"]

    sound(simulation(tmp_path).run(script))


def test_a_list_that_stands_still_ends_nothing_and_buys_nothing_twice(tmp_path: Path, sound) -> None:
    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.world.faults.stale_lists = True
        sim.checker.faults_on = True
        await sim.clock.sleep(5.0)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=30.0, notice=30.0)
        sim.board.reclaim(sim.live(Market.SPOT)[1].id, after=1.0, notice=None)
        await sim.clock.sleep(120.0)
        sim.world.faults.stale_lists = False
        await sim.clock.sleep(20.0)
        sim.checker.faults_on = False
        await sim.settle()

    outcome = sound(simulation(tmp_path).run(script))
    assert outcome.launches <= 4 + 4  # a cover and a spot node for each that was lost


def test_while_lists_fail_nothing_is_ended_or_bought(tmp_path: Path, sound) -> None:
    """Notices are heard and drained meanwhile; after the outage all is caught up."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.checker.faults_on = True
        sim.world.faults.arm("list", Fault.FAILED, times=60)
        await sim.clock.sleep(sim.pool.patience.stale_after + 5.0)
        before = len(sim.effects.log)
        node = sim.live(Market.SPOT)[0].id
        sim.board.reclaim(node, after=60.0, notice=60.0)
        await sim.clock.sleep(20.0)
        assert node not in {s.id for s in sim.table.active()}
        assert [e for e in sim.effects.log[before:] if e.kind in DESTRUCTIVE] == []
        await sim.settle()
        assert [e for e in sim.effects.log[before:] if e.kind == "launch"]

    sound(simulation(tmp_path).run(script))


def test_forged_unknown_and_repeated_notices(tmp_path: Path, sound) -> None:
    """Nodes that all say they go away, one after another: no more than the disruption budget are believed."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        sim.board.publish("i-9999", deadline=sim.clock.now() + 60.0, copies=3)
        for machine in sim.live():
            deadline = sim.clock.now() + 60.0
            sim.board.publish(machine.id, deadline=deadline, sources=("sim-metadata",), copies=2)
        most = 0
        for _ in range(60):
            await sim.clock.sleep(1.0)
            draining = [
                s for s in sim.table.targets.values() if s.id not in {a.id for a in sim.table.active()}
            ]
            most = max(most, len(draining))
        assert most <= sim.pool.disruption_budget
        await sim.settle()

    sound(simulation(tmp_path).run(script))


@pytest.mark.parametrize("broken", ["observe", "apply"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_node_that_may_still_get_requests_is_not_ended(
    tmp_path: Path, sound, broken: str, lost: bool
) -> None:
    """After a restart a balancer that cannot be read or written may still send it some, drained or not."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        assert sim.running is not None
        sim.kill(sim.running)
        if lost:
            sim.lose_journal()
        sim.checker.faults_on = True
        sim.world.faults.arm(broken, Fault.DENIED, times=1000)
        node = sim.live(Market.ON_DEMAND)[0].id
        deadline = sim.clock.now() + 5.0
        sim.board.publish(node, kind=NoticeKind.MAINTENANCE, deadline=deadline)
        sim.boot()
        await sim.clock.sleep(90.0)
        assert sim.world.machines[node].live
        assert node in {s.id for s in sim.table.active()}
        sim.world.faults.disarm(broken)
        await sim.clock.sleep(30.0)
        sim.checker.faults_on = False
        await sim.settle()
        assert not sim.world.machines[node].live

    sound(simulation(tmp_path).run(script))


def test_a_lost_journal_and_the_only_node_under_a_notice_leave_the_set_as_it_is(
    tmp_path: Path, sound
) -> None:
    """The only node that can answer stays a target, although no daemon remembers to have put it there."""

    async def script(sim: Simulation) -> None:
        await ready(sim)
        assert sim.running is not None
        sim.kill(sim.running)
        sim.lose_journal()
        (machine,) = sim.live()
        deadline = sim.clock.now() + 5.0
        sim.board.publish(machine.id, kind=NoticeKind.MAINTENANCE, deadline=deadline)
        sim.boot()
        await sim.settle()
        assert not machine.live

    sound(simulation(tmp_path, pool={"replicas": 1}).run(script))
