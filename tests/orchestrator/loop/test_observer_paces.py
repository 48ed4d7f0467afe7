"""Looks follow each other at any pace, and what was seen before a gap is not continued."""

from __future__ import annotations

import pytest
from observer_rig import Play, Watch, machine, watch

from cloud.errors import Throttled
from orchestrator.loop.observer import Pace, _notable
from policies.model import EngineReading, Target, TargetState

pytestmark = pytest.mark.usefixtures("quiet")

SLOW = 40.0
"""Seconds from look to look: well beyond the ten after which quicker looks do not follow each other."""


def unhealthy() -> tuple[Target, ...]:
    return (Target(id="a", address="a:1", state=TargetState.UNHEALTHY),)


def test_slow_looks_follow_each_other(play: Play) -> None:
    """Neither silence nor absence begins anew with each of them."""

    async def work(w: Watch) -> None:
        began = w.clock.now()
        w.port.targets, w.port.silent = unhealthy(), {"a"}
        w.follow("a")
        await w.clock.sleep(10 * SLOW)
        world = w.world()
        assert world.regions[""].since == began
        assert world.balancers["gw"].since == began
        (target,) = world.balancers["gw"].value
        assert target.failing_since == began
        silent_since = world.engines["a"].failing_since
        assert silent_since is not None
        assert silent_since - began < 1.0
        assert w.looks("instances") == w.looks("targets") == 10

    watch(play, work, instances=SLOW, targets=SLOW, engines=SLOW)


@pytest.mark.parametrize(("lost", "same"), [(1, True), (3, False)])
def test_of_slow_looks_a_few_may_be_lost(play: Play, lost: int, same: bool) -> None:
    """A gap is three paces where those are longer than ten seconds."""

    async def work(w: Watch) -> None:
        began = w.clock.now()
        w.port.targets = unhealthy()
        await w.clock.sleep(2 * SLOW + 5.0)
        w.port.fails = {"instances": Throttled("slow down"), "targets": Throttled("slow down")}
        await w.clock.sleep(lost * SLOW)
        w.port.fails = {}
        await w.clock.sleep(2 * SLOW)
        world = w.world()
        assert (world.regions[""].since == began) is same
        (target,) = world.balancers["gw"].value
        assert (target.failing_since == began) is same

    watch(play, work, instances=SLOW, targets=SLOW)


def test_a_target_that_was_well_in_between_fails_since_its_second_time_and_its_neighbour_since_its_first(
    play: Play,
) -> None:
    async def work(w: Watch) -> None:
        def both(a: TargetState) -> tuple[Target, ...]:
            return (
                Target(id="a", address="a:1", state=a),
                Target(id="b", address="b:1", state=TargetState.UNHEALTHY),
            )

        def since() -> dict[str, float | None]:
            return {t.id: t.failing_since for t in w.world().balancers["gw"].value}

        began = w.clock.now()
        w.port.targets = both(TargetState.UNHEALTHY)
        await w.clock.sleep(7.0)
        assert since() == {"a": began, "b": began}
        w.port.targets = both(TargetState.HEALTHY)
        await w.clock.sleep(5.0)
        assert since() == {"a": None, "b": began}
        w.port.targets = both(TargetState.UNHEALTHY)
        await w.clock.sleep(5.0)
        found = since()
        assert found["b"] == began
        assert found["a"] is not None
        assert found["a"] > began + 10.0

    watch(play, work)


def test_a_balancer_that_says_itself_since_when_a_target_fails_is_believed(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.targets = (Target(id="a", address="a:1", state=TargetState.UNHEALTHY, failing_since=7.0),)
        await w.clock.sleep(20.0)
        (target,) = w.world().balancers["gw"].value
        assert target.failing_since == 7.0

    watch(play, work)


def test_the_hurry_ends_and_each_kind_of_it_is_for_its_own_looks(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.slow_look = 0.0

        async def quick() -> tuple[bool, bool]:
            """Whether machines and targets are looked at more often than every five seconds."""
            before = w.looks("instances"), w.looks("targets")
            await w.clock.sleep(50.0)
            looks = w.looks("instances") - before[0], w.looks("targets") - before[1]
            assert all(9 <= each <= 11 or each > 150 for each in looks), looks
            return looks[0] > 11, looks[1] > 11

        assert await quick() == (False, False)
        w.observer.hurry(on=False, routes=True)
        await w.clock.sleep(5.0)
        assert await quick() == (False, True)
        w.observer.hurry(on=True)
        await w.clock.sleep(5.0)
        assert await quick() == (True, True)
        w.observer.hurry(on=False)
        await w.clock.sleep(5.0)
        assert await quick() == (False, False)

    watch(play, work)


def test_a_list_of_the_same_machines_wakes_nobody_and_the_first_and_a_new_one_do(play: Play) -> None:
    async def work(w: Watch) -> None:
        await w.clock.sleep(20.0)
        woken = w.woken
        await w.clock.sleep(60.0)
        assert w.woken == woken
        w.port.machines = [machine("a")]
        await w.clock.sleep(60.0)
        assert w.woken == woken + 1
        w.port.machines = []
        await w.clock.sleep(60.0)
        assert w.woken == woken + 2

    watch(play, work)


def test_a_world_says_of_the_journal_and_the_lease_what_the_loop_says(play: Play) -> None:
    async def work(w: Watch) -> None:
        for durable, leading in ((True, False), (False, True)):
            world = w.observer.world(durable=durable, leading=leading, epoch=7)
            assert (world.durable, world.leading, world.epoch) == (durable, leading, 7)

    watch(play, work)


def test_prices_that_are_read_in_part_say_since_when_and_are_asked_for_soon(play: Play) -> None:
    async def work(w: Watch) -> None:
        began = w.clock.now()
        w.port.problems = {"east": "one of them is no number"}
        await w.clock.sleep(30.0)
        east, west = w.world().offerings["east"], w.world().offerings["west"]
        assert (east.failing_since, west.failing_since) == (began, None)
        assert east.at is not None
        assert east.at > began + 10.0, "it was asked again, and what it had was taken"
        assert (w.looks("east"), w.looks("west")) == (5, 1)
        w.port.problems = {}
        await w.clock.sleep(30.0)
        assert w.world().offerings["east"].failing_since is None

    watch(play, work)


def test_that_a_target_has_no_request_left_is_news_of_one_that_drains(play: Play) -> None:
    async def work(w: Watch) -> None:
        def target(in_flight: int) -> tuple[Target, ...]:
            return (Target(id="a", address="a:1", state=TargetState.HEALTHY, in_flight=in_flight),)

        async def woke(seconds: float = 11.0) -> int:
            before = w.woken
            await w.clock.sleep(seconds)
            return w.woken - before

        w.port.targets = target(3)
        await w.clock.sleep(20.0)
        w.port.targets = target(0)
        assert await woke() == 0, "in a pool with little traffic every look would wake the loop"
        w.observer.hurry(on=False, draining={"a"})
        assert await woke() == 0
        w.port.targets = target(2)
        assert await woke() == 1
        w.port.targets = target(1)
        assert await woke() == 0
        w.port.targets = target(0)
        assert await woke() == 1, "one that drains has no request left"

    watch(play, work)


@pytest.mark.parametrize(("pace", "after"), [(0.5, 6.0), (2.0, 6.0), (3.0, 9.0), (40.0, 120.0)])
def test_two_looks_at_a_balancer_may_be_lost_before_nobody_knows_what_it_holds(
    pace: float, after: float
) -> None:
    assert Pace(targets=pace).unread_after == after


def reading(*, ready: bool = True, ok: bool = True, running: int = 0) -> EngineReading:
    return EngineReading(node="a", at=1.0, ready=ready, ok=ok, running=running)


@pytest.mark.parametrize(
    ("ready", "ok", "news"),
    [(True, True, True), (False, True, False), (False, False, True)],
    ids=["ready", "loads", "silent"],
)
def test_the_first_probe_is_news_of_an_engine_that_is_ready_or_does_not_answer(
    ready: bool, ok: bool, news: bool
) -> None:
    assert _notable(None, reading(ready=ready, ok=ok), draining=False) is news


@pytest.mark.parametrize(
    ("before", "after", "draining", "news"),
    [
        (1, 0, True, True),
        (0, 1, True, True),
        (2, 1, True, False),
        (1, 2, True, False),
        (1, 0, False, False),
    ],
)
def test_that_an_engine_has_nothing_to_do_is_news_of_one_that_drains(
    before: int, after: int, draining: bool, news: bool
) -> None:
    assert _notable(reading(running=before), reading(running=after), draining=draining) is news
