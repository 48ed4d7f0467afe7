"""How often the gateway checks a target: by what it owes, and at once when a request failed there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hand_clock import HandClock

from orchestrator.gateway.health import HealthChecker
from policies.model import TargetState

INTERVAL = 2.0


class Played(HealthChecker):
    """Checks that note what they do; what is suspected and owed after each wait is given."""

    def __init__(self, *after: tuple[bool, bool]) -> None:
        self._gate: Any = SimpleNamespace(health_interval=INTERVAL)
        self._rng: Any = SimpleNamespace(uniform=lambda least, most: least)
        self._clock = HandClock()
        self.after, self.done = list(after), list[str | float]()

    async def _check(self, entry: Any) -> None:
        self.done.append("check")
        entry.watched = bool(self.after)

    async def _suspected(self, entry: Any, seconds: float) -> bool:
        self.done.append(seconds)
        suspected, self.owed = self.after.pop(0) if self.after else (True, False)
        return suspected

    def _owes(self, entry: Any, interval: float) -> bool:
        return self.owed


def target(**known: Any) -> Any:
    spec = SimpleNamespace(id="a")
    clock = SimpleNamespace(heard_at=1000.0)
    known = {"health": TargetState.HEALTHY, "in_flight": 0, "watched": True, **known}
    return SimpleNamespace(spec=spec, clock=clock, suspicion=asyncio.Event(), **known)


QUIET, OWES, FAILED = (False, False), (False, True), (True, False)


@pytest.mark.parametrize(
    ("after", "done"),
    [
        ((QUIET, QUIET, QUIET), ["check", 1.0, 2.0, 2.0, "check", 2.0]),
        ((OWES, OWES), ["check", 1.0, "check", 2.0, "check", 2.0]),
        ((FAILED, FAILED), ["check", 1.0, "check", 2.0, "check", 2.0]),
        ((QUIET, FAILED), ["check", 1.0, 2.0, "check", 2.0]),
    ],
    ids=["at ease", "owes", "failed", "failed later"],
)
async def test_a_target_is_checked_by_what_it_owes(after: Any, done: Any) -> None:
    checks = Played(*after)
    await checks._watch(target())
    assert checks.done == done


async def test_a_check_that_crashes_is_followed_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    class Crashes(Played):
        async def _check(self, entry: Any) -> None:
            await super()._check(entry)
            raise RuntimeError("a bug")

    checks = Crashes(OWES)
    await checks._watch(target())
    assert checks.done == ["check", 1.0, "check", 2.0]


@pytest.mark.parametrize(
    ("health", "in_flight", "silent", "owes"),
    [
        (TargetState.HEALTHY, 0, 60.0, False),
        (TargetState.HEALTHY, 1, INTERVAL, True),
        (TargetState.HEALTHY, 1, INTERVAL - 0.1, False),
        (TargetState.UNHEALTHY, 0, 0.0, True),
        (TargetState.INITIAL, 0, 0.0, True),
    ],
)
async def test_a_target_owes_answers_while_it_is_silent_or_not_known_to_be_well(
    health: TargetState, in_flight: int, silent: float, *, owes: bool
) -> None:
    checks = Played()
    checks._clock.at += silent  # type: ignore[attr-defined]
    assert HealthChecker._owes(checks, target(health=health, in_flight=in_flight), INTERVAL) is owes


async def test_two_checks_have_a_gap_however_many_requests_fail_meanwhile() -> None:
    checks, entry = Played(), target()
    assert not await HealthChecker._suspected(checks, entry, 0.0)
    assert checks._clock.now() == 1000.0
    entry.suspicion.set()
    assert await HealthChecker._suspected(checks, entry, 60.0)
    assert checks._clock.now() == pytest.approx(1000.05)
