"""Who must take requests before others are taken out of a balancer: add first, wait, then drain.

A balancer that checks its targets sends a new one nothing until a check has passed. Where every target that
takes requests leaves and the new ones are not checked yet, clients would get errors in between, so an adapter
adds first and waits for a moment. It waits for nothing where a target that stays takes requests: a noticed
node is not held up by a slow newcomer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from cloud.ports import Clock
from policies.model import Target, TargetPhase, TargetSpec, TargetState

WAIT = 3.0
"""Seconds for which a drain waits for a newcomer at most; well below the time that a call may take."""

_POLL = 0.02  # s between two looks at the newcomers


def newcomers(shown: Iterable[Target], desired: Sequence[TargetSpec]) -> frozenset[str]:
    """The targets of which one must take requests before the others leave; none where nothing is waited for.

    `shown`: what the balancer holds now.
    """
    active = {spec.id: spec.address for spec in desired if spec.phase is TargetPhase.ACTIVE}
    healthy = {target.id: target.address for target in shown if target.state is TargetState.HEALTHY}
    stays = any(active.get(node) == address for node, address in healthy.items())
    return frozenset() if stays or not healthy else frozenset(active)


async def one_takes_requests(
    waiting: frozenset[str],
    look: Callable[[], Awaitable[Iterable[Target]]],
    desired: Sequence[TargetSpec],
    clock: Clock,
    wait: float = WAIT,
    poll: float = _POLL,
) -> bool:
    """Look until the balancer finds one of those healthy at its wanted address, for `wait` seconds at most.
    `poll`: seconds between two looks.

    False when none was by then: the others leave all the same. Raises what `look` raises.
    """
    address = {spec.id: spec.address for spec in desired}
    until = clock.steady() + wait
    while True:
        for target in await look():
            right = target.id in waiting and target.address == address[target.id]
            if right and target.state is TargetState.HEALTHY:
                return True
        if clock.steady() >= until:
            return False
        await clock.sleep(poll)
