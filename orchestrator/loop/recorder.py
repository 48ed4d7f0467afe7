"""Decides which turns of the loop are recorded, so that `orchestrator journal replay` can decide them again.

Recorded is every turn that does something, every turn that holds back or says something else than the one
recorded before it, and now and then a quiet one. What only counts on ("refused 6 s ago") is not something
else. What goes on is recorded once: a target set that a balancer does not take, an alarm that stays.
"""

from __future__ import annotations

import re
from typing import Any, Final

from orchestrator.journal.turn_codec import Failure, failure
from orchestrator.journal.turn_log import TurnLog, TurnRecord
from orchestrator.metrics import metrics
from policies.actions import Alarm, Plan
from policies.memory import Memory
from policies.model import Pool, World

RECORDING_LASTS: Final = 3600.0
"""Seconds after which a new recording begins."""

RECORDING_TURNS: Final = 500
"""Turns after which a new recording begins."""

_NUMBER: Final = re.compile(r"(?<![\w.-])[\d.]+(?![\w-])")


class Recorder:
    """One pool's recorder. `log` takes what is to be recorded.

    `quiet` is after how many seconds a turn is recorded that neither does nor says anything new.
    """

    def __init__(self, log: TurnLog, *, quiet: float) -> None:
        self._log, self._quiet = log, quiet
        self._last: Plan | None = None
        self._last_at = 0.0
        self._began = 0.0
        self._turns = 0
        self._begins = True

    def decided(self, pool: Pool, world: World, memory: Memory, plan: Plan, *, behind: int) -> None:
        """A turn has decided. `behind`: events that `memory` has taken in and that are not on disk yet.

        Costs microseconds unless a quiet turn has much to say: it stands between a decision and its deeds.
        """
        if self._matters(world.now, plan):
            self._record(pool, world, memory, plan, behind)

    def raised(self, pool: Pool, world: World, memory: Memory, error: Exception, *, behind: int) -> None:
        """A turn could not decide: the bug is to be seen again on a desk."""
        self._record(pool, world, memory, failure(error), behind)

    def _record(self, pool: Pool, world: World, memory: Memory, plan: Plan | Failure, behind: int) -> None:
        old = world.now - self._began >= RECORDING_LASTS or self._turns >= RECORDING_TURNS
        begins = self._begins or old
        record = TurnRecord(pool=pool, world=world, plan=plan, memory=memory, behind=behind, begins=begins)
        if not self._log.hold(record):
            metrics.TURNS_UNRECORDED.labels(pool.name).inc()
            return
        if begins:
            self._begins, self._began, self._turns = False, world.now, 0
        self._turns += 1
        self._last, self._last_at = (plan if isinstance(plan, Plan) else None), world.now

    def begin(self) -> None:
        """The wanted state has changed: a recording holds one, so the next turn begins another."""
        self._begins = True

    def events_lost(self) -> None:
        """Memory has taken in events that will never be on disk: only a new recording tells it right."""
        self.begin()
        self._log.forget_unplaced()

    def _matters(self, now: float, plan: Plan) -> bool:
        if self._last is None or self._begins or not 0 <= now - self._last_at < self._quiet:
            return True
        if any(not isinstance(action, Alarm) for action in plan.actions):
            return True
        return _gist(plan) != _gist(self._last)


def _gist(plan: Plan) -> tuple[Any, ...]:
    """What a plan without deeds says, without the numbers that count on."""
    return (
        {a.name for a in plan.actions if isinstance(a, Alarm)},
        plan.write,
        plan.targets if plan.write else (),
        [(d.kind, d.node, d.placement, _NUMBER.sub("", d.reason)) for d in plan.deferred],
        [_NUMBER.sub("", note) for note in plan.notes],
    )
