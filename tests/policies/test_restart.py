"""What a daemon that has just started may do: with its journal, without it, and before it has looked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.actions import Cause, Detach, Drain, Launch, Terminate
from policies.events import DaemonStarted, PoolConfigured
from policies.memory import Memory, reduce
from policies.model import Confidence, Notice, NoticeKind, Observed, Pool, TargetPhase, TargetState
from tests.support.scene import Scene
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import of_kind, quick_pool


def lose_journal(toy: ToyCloud) -> None:
    """The state file was corrupt: another epoch, nothing remembered."""
    toy.restart()
    toy.memory = reduce(
        Memory(),
        DaemonStarted(at=toy.now, epoch=toy.epoch),
        PoolConfigured(at=toy.now, replicas=toy.pool.replicas),
    )


def test_a_restart_leaves_a_settled_pool_alone() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    before = toy.active()
    toy.restart()
    toy.probing = False  # the first turns come before the first probes
    for _ in range(3):
        plan = toy.turn()
        assert not [a for a in plan.actions if isinstance(a, Launch | Terminate | Drain | Detach)]
        assert toy.active() == before
    toy.probing = True
    toy.run(60)
    assert toy.active() == before
    assert toy.count == 10


@pytest.mark.parametrize("probes_late", [True, False])
def test_without_a_journal_the_pool_is_adopted_and_keeps_serving(probes_late: bool) -> None:
    """All nodes are much older than the boot time-out: their age is no reason to end them."""
    toy = CheckedCloud(quick_pool(10))
    toy.run(1000)
    before, alive = toy.active(), toy.alive()
    lose_journal(toy)
    toy.probing = not probes_late
    for _ in range(5):
        plan = toy.turn()
        assert not [a for a in plan.actions if isinstance(a, Launch | Terminate | Drain)]
        assert toy.active() == before
    toy.probing = True
    toy.run(100)
    assert toy.active() == before
    assert toy.alive() == alive
    assert toy.count == 10


def test_without_a_journal_surplus_is_drained_and_not_cut() -> None:
    toy = CheckedCloud(quick_pool(10))
    toy.run(100)
    toy.pool = replace(toy.pool, replicas=6)
    toy.load(2)
    lose_journal(toy)
    toy.probing = False
    toy.run(6)
    toy.probing = True
    for _ in range(200):
        toy.turn()
        for node in toy.alive():
            if node not in toy.active():
                toy.machines[node].running = 0
    assert len(toy.alive()) == 6
    assert toy.cut == 0


def test_nothing_is_written_before_a_balancer_was_read() -> None:
    here = Scene().nodes(4)
    here.fields["applied_at"] = {}
    here.settings["balancers"] = {"gw": Observed(value=())}
    assert here.plan().write == ()


def test_before_the_first_list_strangers_stay_in_the_target_set() -> None:
    """Memory came from an old backup: it lacks a node that serves."""
    here = Scene().nodes(4).node("stranger")
    del here.records["stranger"]
    here.settings["regions"] = {"": Observed(value=())}
    here.fields["applied_at"] = {}
    plan = here.plan()
    assert {t.id for t in plan.targets} == {"s0", "s1", "s2", "s3", "stranger"}
    assert plan.write == ("gw",)


def test_before_the_first_list_a_stranger_that_serves_is_resort_enough() -> None:
    """The only node that memory knows has drained: it gets no new requests."""
    here = Scene(Pool(name="p", replicas=2)).node("a").node("stranger")
    here.notice("a")
    here.drain("a", Cause.NOTICE)
    del here.records["stranger"]
    here.settings["regions"] = {"": Observed(value=())}
    here.fields["applied_at"] = {}
    assert {t.id: t.phase for t in here.plan().targets} == {
        "a": TargetPhase.DRAINING,
        "stranger": TargetPhase.ACTIVE,
    }


@pytest.mark.parametrize(("read_ago", "phase"), [(50.1, TargetPhase.ACTIVE), (49.9, TargetPhase.DRAINING)])
def test_before_the_first_list_a_set_that_was_taken_since_the_look_tells_who_gets_requests(
    read_ago: float, phase: TargetPhase
) -> None:
    """Somebody turned it round by hand before; the set was acknowledged 50 s ago."""
    here = Scene().nodes(4).node("x", silent_for=60.0)
    here.shown["x"] = replace(here.shown["x"], state=TargetState.DRAINING)
    here.settings["regions"] = {"": Observed(value=())}
    here.settings["balancers"] = {"gw": Observed(value=tuple(here.shown.values()), at=here.now - read_ago)}
    assert {t.id: t.phase for t in here.plan().targets}["x"] is phase


def test_before_the_first_list_a_notice_still_takes_its_node_out() -> None:
    here = Scene().nodes(4)
    for node in list(here.instances):
        del here.instances[node]
    here.engines.clear()
    here.settings["regions"] = {"": Observed(value=())}
    here.fields["applied_at"] = {}
    here.notice("s1")
    plan = here.plan()
    assert {t.id: t.phase for t in plan.targets} == {
        "s0": TargetPhase.ACTIVE,
        "s1": TargetPhase.DRAINING,
        "s2": TargetPhase.ACTIVE,
        "s3": TargetPhase.ACTIVE,
    }
    assert plan.write == ("gw",)
    assert [a.node for a in plan.actions if isinstance(a, Drain)] == ["s1"]


def test_what_no_list_shows_and_nobody_looked_at_stays_but_does_not_enter() -> None:
    """It may have ended: a balancer says so only of what is in its set, and it would enter in turns."""
    here = Scene().nodes(5)
    for node in ("s1", "s2", "s3"):
        del here.instances[node], here.engines[node]
    del here.held["s1"], here.shown["s1"]
    del here.held["s2"]  # the write that put it in was not answered, and the balancer shows it
    assert {t.id for t in here.plan().targets} == {"s0", "s2", "s3", "s4"}


def test_a_balancer_that_is_no_longer_configured_holds_nothing_back() -> None:
    here = Scene().nodes(4).node("old").drain("old", Cause.EXCESS)
    here.records["old"] = replace(here.records["old"], idle_since=here.now - 5.0)
    here.held["old"] = TargetPhase.DRAINING
    here.fields["targets"] = {"gw": dict(here.held), "removed": {"old": TargetPhase.ACTIVE}}
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["old"]


def test_a_doomed_node_that_serves_late_goes_on_doing_so_over_a_restart() -> None:
    toy = CheckedCloud(quick_pool(2), boot=100.0)
    toy.run(240)
    noticed = toy.alive()[0]
    toy.machines[noticed].dies_at = toy.now + 120.0
    toy.arriving.clear()
    toy.notice(noticed, 120.0, kind=NoticeKind.MAINTENANCE)
    toy.turn()
    assert noticed in toy.active()
    toy.restart()
    toy.probing = False
    toy.turn()
    assert noticed in toy.active()


def test_reports_before_the_first_probe_stay_within_the_budget() -> None:
    here = Scene().nodes(4)
    here.engines.clear()
    for node in list(here.records):
        here.notice(node, confidence=Confidence.REPORTED, source="agent")
    assert len(of_kind(here.plan(), Drain)) == 1
    assert isinstance(here.records["s0"].notices[0], Notice)
