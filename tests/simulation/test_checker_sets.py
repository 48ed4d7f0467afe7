"""What the checker demands of target sets, and of requests in flight."""

from __future__ import annotations

from functools import partial

import pytest
from watched import Watched, watch

from cloud.sim.notices import METADATA, QUEUE, NoticeBoard
from policies.events import DaemonStarted, DrainEnded, NoticeSeen
from policies.model import Confidence, Market, Notice, NoticeKind
from policies.value import replace


@pytest.mark.parametrize("remembered", [True, False])
def test_one_that_somebody_put_back_may_stay_where_no_daemon_remembers_it(remembered: bool) -> None:
    async def script(watched: Watched) -> None:
        third = watched.machines[2]
        await watched.let_go(third)
        if not remembered:
            watched.known.discard(third.id)
        watched.by_hand(third)
        await watched.clock.sleep(2.0)
        await watched.write(watched.machines)

    assert ("no-way-back" in watch(script).broken) is remembered


@pytest.mark.parametrize("ended", [True, False])
def test_one_that_was_put_back_to_work_stays_though_no_journal_could_be_written(ended: bool) -> None:
    """The set said so, and the next daemon may only know that it drained."""

    async def script(watched: Watched) -> None:
        third = watched.machines[2]
        await watched.let_go(third)
        if ended:
            back = DrainEnded(at=watched.clock.now(), node=third.id, reason="its notice is taken back")
            watched.checker.hear([back], written=False)
        await watched.write(watched.machines)
        watched.checker.hear([DaemonStarted(at=watched.clock.now(), epoch=2)], written=True)
        await watched.clock.sleep(60.0)
        await watched.write(watched.machines)

    assert ("no-way-back" in watch(script).broken) is not ended


@pytest.mark.parametrize(("ago", "harm"), [(5.0, False), (60.0, True)])
def test_a_node_that_somebody_put_back_just_now_may_be_ended(ago: float, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        third = watched.machines[2]
        await watched.let_go(third)
        await watched.clock.sleep(60.0)
        watched.by_hand(third)
        await watched.clock.sleep(ago)
        await watched.instances.terminate(third.id)

    assert ("detach-first" in watch(script).broken) is harm


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("ago", "harm"), [(5.0, False), (12.0, True)])
def test_it_may_be_ended_with_the_requests_that_it_got_so(ago: float, harm: bool, fixed: bool) -> None:
    async def script(watched: Watched) -> None:
        third = watched.machines[2]
        await watched.let_go(third)
        watched.by_hand(third)
        await watched.clock.sleep(ago)
        if fixed:
            await watched.write(watched.machines[:2], draining=[third])
        assert third.in_flight(watched.clock.now())
        await watched.instances.terminate(third.id)

    assert ("drain-first" in watch(script, traffic=5.0).broken) is harm


@pytest.mark.parametrize(
    ("ago", "read", "harm"),
    [(0.2, "before", False), (60.0, "before", True), (60.0, "never", False), (60.0, "too late", False)],
)
def test_what_was_in_the_set_for_a_blink_may_be_put_back_as_it_was_seen(
    ago: float, read: str, harm: bool
) -> None:
    """Also where nobody could read the set since, or not before another was on its way."""

    async def script(watched: Watched) -> None:
        await watched.clock.sleep(0.2)
        strange = watched.machines[2]
        strange.loaded_at = 1e12
        watched.by_hand(strange)
        await watched.balancer.observe()
        await watched.write(watched.machines[:2])
        await watched.clock.sleep(ago)
        if read == "before":
            await watched.balancer.observe()
        if read == "too late":
            watched.table.on_sent.append(lambda table, *_: setattr(table, "read_at", watched.clock.now()))
        await watched.write(watched.machines)

    assert ("ready-first" in watch(script).broken) is harm


@pytest.mark.parametrize(
    ("known", "shown", "harm"), [(False, True, False), (False, False, True), (True, True, True)]
)
def test_what_nobody_knows_and_a_balancer_shows_draining_may_be_sent_as_it_was_before(
    known: bool, shown: bool, harm: bool
) -> None:
    """A set from then may be on its way, of which no answer came."""

    async def script(watched: Watched) -> None:
        strange, others = watched.machines[2], watched.machines[:2]
        strange.loaded_at = 1e12
        if not known:
            watched.known.discard(strange.id)
        watched.by_hand(strange)
        await watched.clock.sleep(2.0)
        await watched.write(others, draining=[strange] if shown else [])
        await watched.clock.sleep(60.0)
        await watched.balancer.observe()
        await watched.write(watched.machines)

    assert ("ready-first" in watch(script).broken) is harm


@pytest.mark.parametrize(("others", "before", "harm"), [(0, True, False), (0, False, True), (2, True, True)])
def test_the_last_one_may_be_put_back_that_got_requests_before(others: int, before: bool, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        strange, stay = watched.machines[2], watched.machines[:others]
        strange.loaded_at = 1e12
        if before:
            watched.by_hand(strange)
            await watched.clock.sleep(5.0)
        await watched.write(stay)
        await watched.clock.sleep(60.0)
        await watched.balancer.observe()
        await watched.write([*stay, strange])

    assert ("ready-first" in watch(script).broken) is harm


def test_whether_a_target_is_the_last_is_judged_by_the_set_that_was_sent() -> None:
    """A balancer that forgets it goes on with others."""

    async def script(watched: Watched) -> None:
        first, second, _ = watched.machines
        await watched.write([first, second])
        await watched.write([first], draining=[second])
        watched.by_hand(second)
        watched.world.faults.forgetful = True
        await watched.write([second])

    assert "no-way-back" not in watch(script).broken


@pytest.mark.parametrize(
    ("left", "forgotten", "avoidable"),
    [(28.0, False, False), (22.0, False, True), (22.0, True, False), (5.0, False, False)],
)
def test_a_cut_could_be_avoided_where_a_set_was_sent_when_its_node_had_to_drain(
    left: float, forgotten: bool, avoidable: bool
) -> None:
    """Twenty-five seconds before the end; sooner it may serve on, later its requests do not finish.

    Whether a notice can take away a node that a lost journal forgot, only a list tells: by its market.
    """

    async def script(watched: Watched) -> None:
        watched.checker.faults_on = True
        await watched.write(watched.machines)
        await watched.clock.sleep(100.0)
        if forgotten:
            watched.checker.forget()
        noticed = watched.machines[0]
        NoticeBoard(watched.world).publish(noticed.id, deadline=watched.clock.now() + 32.0)
        watched.world.reclaim(noticed.id, after=32.0)
        await watched.clock.sleep(32.0 - left)
        await watched.write(watched.machines)
        await watched.clock.sleep(60.0)

    assert ("no-request-cut" in watch(script, traffic=5.0).broken) is avoidable


@pytest.mark.parametrize(("told", "avoidable"), [((32.0,), True), ((300.0,), False), ((300.0, 32.0), True)])
def test_a_cut_could_be_avoided_that_was_told_for_then(told: tuple[float, ...], avoidable: bool) -> None:
    """That it was told again when it came to that helped nobody."""

    async def script(watched: Watched) -> None:
        await watched.write(watched.machines)
        await watched.clock.sleep(100.0)
        board, noticed, now = NoticeBoard(watched.world), watched.machines[0], watched.clock.now()
        for lead in told:
            board.publish(noticed.id, kind=NoticeKind.MAINTENANCE, deadline=now + lead)
        watched.world.reclaim(noticed.id, after=32.0)
        watched.world.later(32.0, lambda: board.publish(noticed.id, deadline=now + 32.0))
        await watched.clock.sleep(60.0)

    assert ("no-request-cut" in watch(script, traffic=5.0).broken) is avoidable


@pytest.mark.parametrize(("taken_back", "harm"), [(("a",), False), (("a", "b"), True)])
def test_a_node_that_takes_one_of_its_reports_back_still_tells_of_its_end(
    taken_back: tuple[str, ...], harm: bool
) -> None:
    async def script(watched: Watched) -> None:
        await watched.write(watched.machines)
        board, (node, *others) = NoticeBoard(watched.world), watched.machines
        publish = partial(board.publish, node.id, deadline=watched.clock.now(), sources=(METADATA,))
        for name in ("a", "b"):
            publish(name=name)
        for name in taken_back:
            publish(name=name, cancelled=True)
        await watched.clock.sleep(60.0)
        await watched.write(others, draining=[node])

    assert ("no-self-harm" in watch(script).broken) is harm


@pytest.mark.parametrize("lost", [True, False])
def test_a_notice_that_a_lost_journal_knew_is_known_no_more_though_another_one_is(lost: bool) -> None:
    async def script(watched: Watched) -> None:
        node, checker = watched.machines[0].id, watched.checker
        checker.faults_on = True
        known = Notice(
            id="a",
            kind=NoticeKind.MAINTENANCE,
            node=node,
            deadline=watched.clock.now() + 500.0,
            source=QUEUE,
            confidence=Confidence.CONFIRMED,
            seen_at=watched.clock.now(),
        )
        NoticeBoard(watched.world).publish(node, kind=known.kind, deadline=known.deadline, name=known.id)
        checker.hear([NoticeSeen(at=0.0, notice=known)], written=True)
        if lost:
            await watched.clock.sleep(1.0)
            checker.forget()
        checker.hear([NoticeSeen(at=0.0, notice=replace(known, id="b", cancelled=True))], written=True)
        await watched.clock.sleep(60.0)
        await watched.instances.terminate(watched.machines[-1].id)

    assert ("floor" in watch(script, Market.ON_DEMAND, machines=4).broken) is not lost
