"""When a request leaves its target: on plain numbers, with the settings that a gateway has by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.gateway.clocks import RequestClock, TargetClock, judge
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.failure import Failure

CONFIG = PoolGate(targets_file=Path("t"))
LIMITS = CONFIG.limits()
BEAT = 0.1


@dataclass
class Story:
    """A target and one request on it, played in steps of `BEAT`.

    The target answers checks (one an interval) and moves while it is not `frozen`; the request
    itself gets a piece every `gap` seconds, None never.
    """

    frozen: tuple[float, float] = (1e9, 1e9)
    gap: float | None = None
    others: float | None = None
    streams: bool = True
    deadline: float = 3600.0

    def leaves(self, until=4000.0):
        """When the request should go elsewhere, why, and whether it ends where there is nowhere to go."""
        target, request = TargetClock(0.0), RequestClock(0.0, streams=self.streams, deadline=self.deadline)
        for step in range(1, int(until / BEAT)):
            now = step * BEAT
            frozen = self.frozen[0] <= now < self.frozen[1]
            if frozen:
                if target.asked_at is None and step % 3 == 0:
                    target.asked(now)
            else:
                if target.asked_at is not None or step % 3 == 0:
                    target.answered(now, passed=True)
                if self.gap is not None and now - request.moved_at >= self.gap:
                    target.moved(now, now - request.moved_at if request.begun else None)
                    target.began(request.sent_at)
                    request.moved_at, request.begun = now, True
                if self.others is not None and step % max(1, int(self.others / BEAT)) == 0:
                    target.moved(now, self.others)
            if (verdict := judge(now, request, target, LIMITS)) is not None:
                return round(now, 1), verdict.failure, verdict.final
        return None


def test_a_frozen_target_loses_its_requests_within_the_stated_time():
    limit = CONFIG.health_timeout + 2 * CONFIG.health_interval
    assert limit <= 5.0
    for streams in (True, False):
        for start in (20.0, 20.1, 20.2, 20.3):
            left, failure, final = Story(
                frozen=(start, 1e9), gap=0.1 if streams else None, streams=streams
            ).leaves()
            assert failure is Failure.LOST
            assert left - start <= limit
            assert not final


@pytest.mark.parametrize("start", [20.0, 20.1, 20.2, 20.3])
@pytest.mark.parametrize("gap", [0.1, None])
def test_four_seconds_of_silence_move_nothing(start, gap):
    story = Story(frozen=(start, start + 4.0), gap=gap, others=0.1, deadline=1e9)
    assert story.leaves(until=300.0) is None


def test_a_frozen_target_fails_its_requests_in_the_end_where_there_is_nowhere_to_go():
    target, request = TargetClock(0.0), RequestClock(0.0, streams=False, deadline=3600.0)
    target.asked(0.5)
    finals = [judge(t, request, target, LIMITS) for t in (4.5, 59.9, 60.1)]
    assert [verdict.final for verdict in finals] == [False, False, True]


def test_a_busy_target_fails_no_request_that_waits_for_its_first_token():
    assert Story(others=0.1).leaves(until=3500.0) is None


def test_a_target_that_passes_its_checks_and_brings_nothing_times_out():
    assert Story().leaves() == (CONFIG.first_token_timeout, Failure.FIRST_TOKEN_TIMEOUT, True)


def test_a_request_that_a_moving_target_forgot_is_taken_elsewhere():
    target, request = TargetClock(0.0), RequestClock(0.0, streams=True, deadline=3600.0)
    target.moved(60.0, None)
    assert judge(60.0, request, target, LIMITS) is None
    target.began(14.0)
    assert judge(60.0, request, target, LIMITS) is None
    target.began(16.0)
    verdict = judge(60.0, request, target, LIMITS)
    assert (verdict.failure, verdict.final) == (Failure.STALLED, False)


def test_a_stream_that_falls_silent_on_a_moving_target_is_stalled():
    target, request = TargetClock(0.0), RequestClock(0.0, streams=True, deadline=3600.0)
    request.begun = True
    verdicts = {}
    for step in range(1, 1000):
        now = step * 0.1
        target.moved(now, 0.1)
        if (verdict := judge(now, request, target, LIMITS)) is not None:
            verdicts.setdefault(verdict.final, now)
            assert verdict.failure is Failure.STALLED
    assert verdicts[False] == pytest.approx(CONFIG.stall_least, abs=0.2)
    assert verdicts[True] == pytest.approx(CONFIG.idle_timeout, abs=0.2)


def test_a_slow_target_is_given_a_multiple_of_its_own_gaps():
    target, request = TargetClock(0.0), RequestClock(0.0, streams=True, deadline=3600.0)
    request.begun = True
    for step in range(200):
        target.moved(step * 2.0, 2.0)
    request.moved_at = now = 398.0
    target.moved(now + 39.0, 2.0)
    assert judge(now + 39.0, request, target, LIMITS) is None
    target.moved(now + 41.0, 2.0)
    assert judge(now + 41.0, request, target, LIMITS).failure is Failure.STALLED


def test_a_refused_check_takes_nothing_while_answers_come():
    target, request = TargetClock(0.0), RequestClock(0.0, streams=True, deadline=3600.0)
    request.begun = True
    for step in range(1, 300):
        now = step * 0.1
        target.answered(now, passed=False)
        target.moved(now, 0.1)
        request.moved_at = now
        assert judge(now, request, target, LIMITS) is None
        assert not target.doubtful(now, LIMITS)


def test_the_deadline_holds_whatever_moves():
    assert Story(gap=0.1, others=0.1, deadline=30.0).leaves() == (30.0, Failure.DEADLINE, True)


def test_a_target_that_leaves_a_check_unanswered_is_doubtful_before_it_is_lost():
    target = TargetClock(0.0)
    target.asked(0.3)
    times = [n * 0.1 for n in range(100)]
    first_doubt = next(t for t in times if target.doubtful(t, LIMITS))
    first_loss = next(t for t in times if target.lost(t, LIMITS))
    assert 1.0 <= first_doubt <= 2.0
    assert first_loss == pytest.approx(CONFIG.health_timeout, abs=0.11)
