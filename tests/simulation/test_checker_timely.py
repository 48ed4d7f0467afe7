"""What the checker demands of decisions and of their time, and what it leaves to who cannot know."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from jobs import bug
from planted_judgements import acknowledges_first
from watched import Watched, watch

from cloud.sim.acknowledged import Acknowledged
from cloud.sim.channels import WITHIN, Truth
from cloud.sim.effects import Moment, Point
from cloud.sim.faults import Fault
from cloud.sim.invariants import INVARIANTS, Bounds
from cloud.sim.notices import METADATA, QUEUE, NoticeBoard
from cloud.sim.numbers import Numbers
from policies.actions import ActionKind, Cause
from policies.events import DaemonStarted, DrainStarted, IntentOpened, NoticeSeen, Paused, Resumed
from policies.model import Confidence, Notice, NoticeKind, Pool, StandbyRules
from policies.model import Limits as PoolLimits

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "simulation.md"


def test_the_page_names_every_invariant_and_every_truth() -> None:
    text = PAGE.read_text()
    assert [name for name in INVARIANTS if f"`{name}`" not in text] == []
    assert [truth for truth in Truth if f"| {truth} | {WITHIN[truth][0]} |" not in text] == []


def test_every_truth_has_a_moment() -> None:
    assert WITHIN.keys() == set(Truth)
    assert all(getattr(Bounds(), name) > 0.0 for _, name in WITHIN.values())


@pytest.mark.parametrize("replicas", range(13))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_the_checker_counts_by_itself_what_the_daemon_counts(replicas: int, share: float) -> None:
    limits = PoolLimits(surge=1, disruption=0.3)
    pool = Pool(
        name="p", replicas=replicas, spot_share=share, limits=limits, standby=StandbyRules(hot=1, stopped=2)
    )
    own = Numbers.of(pool)
    assert (own.floor, own.spot) == (pool.on_demand_floor, pool.spot_wanted)
    assert (own.serving, own.most) == (pool.min_serving, pool.most_units)
    assert min(own.disturbed, 10**6) == min(pool.disruption_budget, 10**6)


# -- decisions -------------------------------------------------------------------------------------


def ends(watched: Watched) -> IntentOpened:
    node = watched.machines[0].id
    return IntentOpened(at=watched.clock.now(), token="t", kind=ActionKind.TERMINATE, node=node)


def drains(watched: Watched, cause: Cause) -> DrainStarted:
    now, node = watched.clock.now(), watched.machines[0].id
    return DrainStarted(at=now, node=node, deadline=now + 20.0, cause=cause, reason="test")


@pytest.mark.parametrize(("age", "harm"), [(29.0, False), (40.0, True)])
def test_nothing_is_ended_on_an_old_list(age: float, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        await watched.instances.list("p", "region")
        await watched.clock.sleep(age)
        watched.checker.hear([ends(watched)], written=True)

    assert ("clear-sight" in watch(script).broken) is harm


@pytest.mark.parametrize(
    ("frozen", "writes", "harm"),
    [
        (0.0, 0.0, True),
        (60.0, 0.0, False),  # it froze before it decided, in its turn
        (60.0, 10.0, True),  # it looked, and decided all the same
    ],
)
def test_a_daemon_that_was_frozen_in_its_turn_decides_on_what_it_saw(
    frozen: float, writes: float, harm: bool
) -> None:
    async def script(watched: Watched) -> None:
        await watched.instances.list("p", "region")
        await watched.clock.sleep(60.0)
        if frozen:
            watched.woke_at = watched.clock.now()
        await watched.clock.sleep(writes)
        watched.checker.hear([ends(watched)], written=True)

    assert ("clear-sight" in watch(script).broken) is harm


@pytest.mark.parametrize(("age", "harm"), [(29.0, False), (40.0, True)])
def test_what_was_decided_before_a_freeze_is_judged_by_the_list_of_then(age: float, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        await watched.instances.list("p", "region")
        await watched.clock.sleep(age)
        decided = ends(watched)
        await watched.clock.sleep(600.0)
        watched.woke_at = watched.clock.now()
        watched.checker.hear([decided], written=True)

    assert ("clear-sight" in watch(script).broken) is harm


@pytest.mark.parametrize(("age", "harm"), [(29.0, False), (31.0, True)])
@pytest.mark.parametrize("call", ["terminate", "stop", "start"])
def test_no_call_is_sent_on_an_old_list_though_it_was_decided_on_a_new_one(
    call: str, age: float, harm: bool
) -> None:
    async def script(watched: Watched) -> None:
        await watched.instances.list("p", "region")
        watched.checker.hear([ends(watched)], written=True)
        await watched.clock.sleep(age)
        watched.woke_at = watched.clock.now()
        await getattr(watched.instances, call)(watched.machines[0].id)

    assert ("clear-sight" in watch(script).broken) is harm


@pytest.mark.parametrize(
    ("waits", "resumed", "harm"), [(30.0, False, True), (30.0, True, False), (61.0, False, False)]
)
def test_a_pause_is_obeyed_until_it_is_over(waits: float, resumed: bool, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        now = watched.clock.now()
        watched.checker.hear([Paused(at=now, by="x", reason="x", until=now + 60.0)], written=True)
        await watched.clock.sleep(waits)
        if resumed:
            watched.checker.hear([Resumed(at=watched.clock.now(), by="x")], written=True)
        watched.checker.hear([ends(watched)], written=True)

    assert ("pause" in watch(script).broken) is harm


@pytest.mark.parametrize(
    ("behind", "waits", "harm"),
    [
        (0.0, 40.0, False),
        (10.0, 30.0, True),  # its end is an instant by the clock: 10 s are left
        (10.0, 41.0, False),
        (3600.0, 59.0, True),  # it lies ahead: all of it is left
        (3600.0, 61.0, False),
        (-30.0, 0.0, False),
    ],
)
def test_a_pause_keeps_its_length_where_the_clock_was_set_back(
    behind: float, waits: float, harm: bool
) -> None:
    """Asked for 60 s; the next daemon starts 30 s later, its clock `behind` that of the first one."""

    async def script(watched: Watched) -> None:
        asked_at = watched.clock.now()
        watched.checker.hear([Paused(at=asked_at, by="x", reason="x", until=asked_at + 60.0)], written=True)
        started_at = asked_at + 30.0 - behind
        watched.checker.hear([DaemonStarted(at=started_at, epoch=2)], written=True)
        late = dataclasses.replace(ends(watched), at=started_at + waits)
        watched.checker.hear([late], written=True)

    assert ("pause" in watch(script).broken) is harm


@pytest.mark.parametrize(("cause", "harm"), [(Cause.NOTICE, False), (Cause.SICK, True), (Cause.RETURN, True)])
def test_while_a_pool_is_paused_only_noticed_nodes_drain(cause: Cause, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        watched.checker.hear([Paused(at=0.0, by="x", reason="x", until=None)], written=True)
        watched.checker.hear([drains(watched, cause)], written=True)

    assert ("pause" in watch(script).broken) is harm


@pytest.mark.parametrize(
    ("replicas", "left", "harm"), [(3, 120.0, True), (3, 24.0, False), (2, 120.0, False)]
)
def test_a_noticed_node_with_time_leaves_only_where_enough_others_serve(
    replicas: int, left: float, harm: bool
) -> None:
    """Three of four are wanted to serve, two of three, and so on; its requests need 25 s."""

    async def script(watched: Watched) -> None:
        board = NoticeBoard(watched.world)
        await watched.write(watched.machines)
        await watched.instances.list("p", "region")
        await watched.clock.sleep(30.0)
        board.publish(watched.machines[0].id, deadline=watched.clock.now() + left)
        watched.checker.hear([drains(watched, Cause.NOTICE)], written=True)

    assert ("serves-on" in watch(script, replicas=replicas).broken) is harm


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize(("stays", "harm"), [(2.0, False), (20.0, True)])
@pytest.mark.parametrize("source", [QUEUE, METADATA])
def test_a_node_leaves_that_one_source_alone_tells_of(
    source: str, stays: float, harm: bool, faults: bool
) -> None:
    async def script(watched: Watched) -> None:
        board, node = NoticeBoard(watched.world), watched.machines[0]
        watched.checker.faults_on = faults
        await watched.write(watched.machines)
        await watched.instances.list("p", "region")
        await watched.clock.sleep(30.0)
        board.publish(node.id, deadline=watched.clock.now() + 120.0, sources=(source,))
        await watched.clock.sleep(stays)

    assert ("one-source" in watch(script, replicas=2).broken) is harm


@pytest.mark.parametrize(("taken_back", "harm"), [(["b"], True), (["a", "b"], False)])
def test_a_notice_stands_where_another_one_is_taken_back(taken_back: list[str], harm: bool) -> None:
    async def script(watched: Watched) -> None:
        board, node = NoticeBoard(watched.world), watched.machines[0]
        await watched.write(watched.machines)
        publish = partial(board.publish, node.id, deadline=watched.clock.now() + 120.0)
        publish(name="a")
        publish(name="b", kind=NoticeKind.MAINTENANCE)
        for name in taken_back:
            publish(name=name, cancelled=True)
        await watched.clock.sleep(20.0)

    assert ("one-source" in watch(script, replicas=2).broken) is harm


@pytest.mark.parametrize("call", ["apply", "observe", "stream"])
def test_while_the_channel_is_away_a_node_need_not_leave(call: str) -> None:
    async def script(watched: Watched) -> None:
        board, node = NoticeBoard(watched.world), watched.machines[0]
        watched.checker.faults_on = True
        await watched.write(watched.machines)
        await watched.instances.list("p", "region")
        await watched.clock.sleep(30.0)
        watched.world.faults.begin((call,), Fault.FAILED)
        board.publish(node.id, deadline=watched.clock.now() + 120.0)
        await watched.clock.sleep(60.0)

    assert watch(script, replicas=2).broken == []


def test_what_two_nodes_tell_of_themselves_may_be_forged() -> None:
    async def script(watched: Watched) -> None:
        board = NoticeBoard(watched.world)
        await watched.write(watched.machines)
        for machine in watched.machines[:2]:
            board.publish(machine.id, deadline=watched.clock.now() + 120.0, sources=(METADATA,))
        await watched.clock.sleep(20.0)

    assert watch(script, replicas=1).broken == []


@pytest.mark.parametrize(
    ("ready_for", "known", "harm"), [(60.0, True, True), (20.0, True, False), (60.0, False, False)]
)
def test_nobody_waits_in_vain_while_a_node_is_ready(ready_for: float, known: bool, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        watched.checker.faults_on = True  # only how soon it becomes a target is asked here
        await watched.instances.list("p", "region")
        for machine in watched.machines:
            machine.loaded_at = machine.addressed_at = watched.clock.now()
        if not known:
            watched.known.clear()
        await watched.clock.sleep(ready_for)

    assert ("unserved" in watch(script, traffic=2.0).broken) is harm


def test_a_slow_balancer_routes_by_what_it_held_before() -> None:
    async def script(watched: Watched) -> None:
        first, second, _ = watched.machines
        await watched.write([first])
        await watched.clock.sleep(30.0)
        assert watched.table.routed(watched.clock.now()) == [first.id]
        await watched.write([second], draining=[first])
        await watched.clock.sleep(18.0)
        assert watched.table.routed(watched.clock.now()) == [first.id]
        assert watched.table.late(watched.clock.now()) == {first.id}
        await watched.clock.sleep(3.0)
        assert watched.table.routed(watched.clock.now()) == [second.id]
        assert watched.table.late(watched.clock.now()) == set()

    watch(script, propagation=20.0, traffic=1.0)


# -- notices on disk -------------------------------------------------------------------------------

NOTICE = Notice(
    id="n",
    kind=NoticeKind.INTERRUPTION,
    node="a",
    deadline=1.0,
    source=QUEUE,
    confidence=Confidence.CONFIRMED,
    seen_at=0.0,
)


@pytest.mark.parametrize(
    ("how", "harm"),
    [("written", False), ("acted on", True), ("lost", True), ("on disk", False), ("of another", True)],
)
def test_a_source_forgets_only_what_is_on_disk(how: str, harm: bool) -> None:
    said: list[str] = []
    watcher = Acknowledged(
        on_disk=lambda notice: how == "on disk",
        checked=lambda _: None,
        report=lambda name, *_: said.append(name),
    )
    heard = NOTICE if how != "of another" else dataclasses.replace(NOTICE, node="b")
    if how != "on disk":
        watcher.hear([NoticeSeen(at=0.0, notice=heard)], written=how != "acted on")
    if how == "lost":
        watcher.forget()
    watcher.acknowledged(NOTICE)
    assert (said == ["acknowledged"]) is harm


@pytest.mark.parametrize("planted", [False, True])
def test_a_daemon_that_dies_after_an_acknowledgement_leaves_the_notice_to_the_next(
    planted: bool, tmp_path: Path
) -> None:
    """Killed just after the queue forgot it: with the bug the next daemon never hears of it."""
    found = bug("a notice is acknowledged before it is journalled")
    rule = acknowledges_first if planted else nullcontext
    played = dataclasses.replace(found, rule=rule)
    clean = played.play(tmp_path / "clean")
    effect = next(e for e in clean.effects if e.kind == "acknowledge")
    outcome = played.play(tmp_path / "killed", crash=Point(effect.number, Moment.AFTER))
    assert outcome.boots == 2
    assert ("one-source" in {b.name for b in outcome.broken}) is planted
