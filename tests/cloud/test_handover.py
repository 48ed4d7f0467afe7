"""Who is waited for before others leave, and for how long."""

import pytest

from cloud.handover import newcomers, one_takes_requests
from policies.model import Target, TargetPhase, TargetSpec, TargetState

HEALTHY, INITIAL, DRAINING = TargetState.HEALTHY, TargetState.INITIAL, TargetState.DRAINING


def shown(**states: TargetState) -> list[Target]:
    return [Target(id=name, address=f"{name}:1", state=state) for name, state in states.items()]


def wanted(active: str, draining: str = "") -> list[TargetSpec]:
    found = [TargetSpec(id=name, address=f"{name}:1") for name in active]
    return found + [TargetSpec(id=n, address=f"{n}:1", phase=TargetPhase.DRAINING) for n in draining]


@pytest.mark.parametrize(
    ("held", "desired", "waits"),
    [
        (shown(a=HEALTHY), wanted("b", "a"), "b"),  # nobody that stays takes requests
        (shown(a=HEALTHY), wanted("bc"), "bc"),
        (shown(a=HEALTHY, b=INITIAL), wanted("b", "a"), "b"),  # added by an earlier set
        (shown(a=HEALTHY, b=HEALTHY), wanted("bc", "a"), ""),  # a newcomer does not hold up the drain
        (shown(a=DRAINING), wanted("b"), ""),  # nobody takes requests as it is
        (shown(), wanted("b"), ""),
        (shown(a=HEALTHY), wanted("", "a"), ""),  # the pool is wanted empty
    ],
)
def test_newcomers_are_waited_for_where_nobody_else_takes_requests(held, desired, waits):
    assert newcomers(held, desired) == frozenset(waits)


def test_a_node_that_moved_to_another_address_is_new():
    desired = [TargetSpec(id="a", address="elsewhere:1")]
    assert newcomers(shown(a=HEALTHY), desired) == {"a"}


class Steps:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def steady(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


async def test_the_wait_ends_when_one_is_healthy_or_its_time_is_over():
    clock = Steps()

    async def look() -> list[Target]:
        return shown(a=HEALTHY, b=HEALTHY if clock.at > 1.0 else INITIAL)

    assert await one_takes_requests(frozenset("b"), look, wanted("b", "a"), clock, wait=3.0)
    assert 1.0 < clock.at < 1.1
    clock.at = -10.0
    assert not await one_takes_requests(frozenset("b"), look, wanted("b", "a"), clock, wait=3.0)
    assert -7.0 <= clock.at < -6.9
