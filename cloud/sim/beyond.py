"""Watches what is done while no database answers, and so no daemon can prove that it leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloud.sim.balancer import TargetTable
from cloud.sim.counting import units
from cloud.sim.effects import Effect, Moment
from cloud.sim.invariants import Bounds
from cloud.sim.numbers import Numbers
from cloud.sim.world import SimWorld
from policies.model import Pool

_CALLS = ("launch", "start", "stop", "terminate")


class Beyond:
    """`failsafe` of one pool: a noticed node still leaves the target set within `bounds.detach` of the
    cloud's word, where enough others serve, and nothing is launched, ended, added or taken out for another
    reason.

    `since` says since when nobody can lead; None while somebody may. `awake_since`: since when the daemon
    that led last is awake; None where there is none. One that was frozen has `bounds.look_anew` to find out
    that nobody leads. `report` takes what breaks.
    """

    def __init__(
        self,
        world: SimWorld,
        table: TargetTable,
        pool: Pool,
        *,
        since: Callable[[], float | None],
        awake_since: Callable[[], float | None],
        bounds: Bounds,
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
    ) -> None:
        self._world, self._table, self._pool, self._since = world, table, pool, since
        self._awake_since, self._bounds = awake_since, bounds
        self._serving = Numbers.of(pool).serving
        self._checked, self._report = checked, report
        self._before: frozenset[str] = frozenset()
        self._could_leave: Mapping[
            str, float
        ] = {}  # noticed node that gets requests -> since when it need not
        world.effects.watchers.append(self._on_effect)
        world.on_tick.append(self._on_tick)

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        if self._since() is None:
            return
        if effect.kind in _CALLS and moment is Moment.BEFORE:
            self._report("failsafe", effect.subject, f"{effect} is done, and nobody can lead")
        elif effect.kind == "apply":
            active = frozenset(spec.id for spec in self._table.active())
            if moment is Moment.BEFORE:
                self._before = active
            else:
                self._set_written(active)

    def _set_written(self, active: frozenset[str]) -> None:
        for node in sorted(active - self._before):
            self._report("failsafe", node, f"{node} was made a target, and nobody can lead")
        for node in sorted(self._before - active):
            machine = self._world.machine(node)
            if machine is None or not (machine.told_at is not None or machine.rumoured):
                self._report("failsafe", node, f"{node} was taken out without a notice, and nobody can lead")

    def _on_tick(self, now: float) -> None:
        since = self._since()
        if since is None:
            self._could_leave = {}
            return
        self._checked("failsafe")
        awake = self._awake_since()
        since = max(since, now if awake is None else awake + self._bounds.look_anew)
        active = [m for m in (self._world.machine(s.id) for s in self._table.active()) if m is not None]
        others = units(self._pool, (m for m in active if m.able(now) and m.told_at is None))
        noticed = {m.id: max(since, m.told_at) for m in active if m.told_at is not None and m.live}
        before = self._could_leave if others >= self._serving else {}
        self._could_leave = {node: max(before.get(node, now), told) for node, told in noticed.items()}
        for node, could in self._could_leave.items():
            if now - could > self._bounds.detach:
                text = f"{node} could have left {now - could:.1f} s ago and still gets requests"
                self._report("failsafe", node, f"{text}; no database answers")
