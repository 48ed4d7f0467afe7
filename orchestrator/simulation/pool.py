"""One pool of a simulated daemon: the world that its nodes live in, its target table, and who watches it.

Every pool has a provider of its own: a world's machines, capacity, faults and notices are nobody else's. All
worlds of a run share the clock, the numbers of effects and the trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from cloud.ports import EngineSpec
from cloud.sim.acknowledged import Acknowledged
from cloud.sim.adapters import AdapterTraffic, AdapterWatch, Asking
from cloud.sim.balancer import SimBalancer, TargetTable, Traffic
from cloud.sim.beyond import Beyond
from cloud.sim.books import Books
from cloud.sim.checker import Checker
from cloud.sim.cloud import SimInstances, SimOfferings, furnish
from cloud.sim.engine import SimEngine
from cloud.sim.invariants import Bounds, DaemonState
from cloud.sim.limits import Limits, Together
from cloud.sim.notices import NoticeBoard, SimNotices
from cloud.sim.vain import InVain
from cloud.sim.world import Pace, Sale, SimWorld
from orchestrator.simulation.pair import OneWriter
from orchestrator.simulation.recorded_store import SimProcess
from orchestrator.simulation.virtual_time import VirtualClock
from orchestrator.wiring.ports import Ports
from policies.events import Event
from policies.model import Notice, Pool


class SimPool:
    """What a simulation keeps for one pool.

    `daemon` says what the checker needs to know of the daemon, `nobody_leads_since` and `woke_at` what the
    watcher of failsafe needs, `on_disk` whether the journal on disk tells of a notice. `beside` is a pool of
    the same run, `together` all that share its budget. What a run draws depends on its `seed`.
    """

    def __init__(
        self,
        pool: Pool,
        clock: VirtualClock,
        *,
        seed: int,
        sales: Sequence[Sale],
        pace: Pace | None,
        traffic: Traffic | None,
        bounds: Bounds | None,
        sources: Sequence[str],
        processes: Sequence[SimProcess],
        daemon: Callable[[], DaemonState | None],
        nobody_leads_since: Callable[[], float | None],
        woke_at: Callable[[], float | None],
        together: Together,
        on_disk: Callable[[str, Notice], bool],
        beside: SimPool | None = None,
    ) -> None:
        self.pool, self.sources = pool, tuple(sources)
        name = "" if beside is None else f"-{pool.name}"
        self.world: SimWorld = SimWorld(
            clock,
            sales=sales,
            rng=draws(seed, f"world{name}"),
            pace=pace,
            beside=beside.world if beside is not None else None,
        )
        self.board = NoticeBoard(self.world, self.sources)
        self.table = TargetTable(
            f"sim-gateway{name}",
            self.world,
            rng=draws(seed, f"traffic{name}"),
            traffic=traffic if traffic is not None else Traffic(),
        )
        asked = traffic if traffic is not None else Traffic()
        if pool.adapters.wanted:
            names = [adapter.name for adapter in pool.adapters.wanted]
            asking = Asking(names=names, skew=asked.skew, share=asked.adapters, seconds=asked.seconds)
            self.table.adapters = AdapterTraffic(self.world, asking, draws(seed, f"adapters{name}"))
        self.checker = Checker(self.world, [self.table], pool, daemon=daemon, bounds=bounds)
        self.limits = Limits(
            self.world,
            pool,
            books=lambda: self.checker.books,
            checked=self.checked,
            report=self.checker.report,
            known=lambda: len(state.known) if (state := daemon()) is not None else 0,
            hidden=self.checker.hidden,
            together=together,
        )
        if self.table.adapters is not None:
            AdapterWatch(
                self.world,
                self.table.adapters,
                lambda: self.table.targets,
                checked=self.checked,
                report=self.checker.report,
                forgotten=(bounds or Bounds()).see_loss,
            )
        self.acknowledged = self._disk_watched(on_disk)
        self.vain = InVain(pool, checked=self.checked, report=self.checker.report)
        Beyond(
            self.world,
            self.table,
            pool,
            since=nobody_leads_since,
            awake_since=woke_at,
            bounds=bounds or Bounds(),
            checked=self.checked,
            report=self.checker.report,
        )
        OneWriter(self.world, self.table, processes, checked=self.checked, report=self.checker.report)

    def _disk_watched(self, on_disk: Callable[[str, Notice], bool]) -> Acknowledged:
        """Whether a source forgets only what is on disk."""
        watcher = Acknowledged(
            on_disk=lambda notice: on_disk(self.pool.name, notice),
            checked=self.checked,
            report=self.checker.report,
        )
        self.board.on_acknowledged.append(watcher.acknowledged)
        return watcher

    def ports(self, clock: VirtualClock) -> Ports:
        """The world as a daemon reaches it whose host has this clock."""
        engine = SimEngine(self.world, clock)
        return Ports(
            instances=SimInstances(self.world),
            offerings=SimOfferings(self.world),
            notices=tuple(SimNotices(self.world, self.board, s, clock=clock) for s in self.sources),
            balancers=(SimBalancer(self.table, self.world),),
            engine=engine,
            command=engine.command(EngineSpec(model="sim", served_name="sim")),
        )

    def checked(self, name: str) -> None:
        """Count that an invariant was put to the test."""
        self.checker.checked[name] += 1

    def hear(self, events: Sequence[Event], written: bool, on_disk: Sequence[Event] = ()) -> None:
        """What a daemon puts into the pool's journal, or acts on before that is `written`.

        `on_disk`: what was written now, heard or not, where others that were heard are not; else empty.
        """
        self.checker.hear(events, written=written, on_disk=on_disk)
        self.limits.hear(events)
        self.vain.hear(events, written=written, on_disk=on_disk)
        self.acknowledged.hear(events, written=written, on_disk=on_disk)

    def forget_unwritten(self) -> None:
        """The daemon ends, and with it what it could not write."""
        self.checker.forget_unwritten()
        self.vain.forget_unwritten()
        self.acknowledged.forget_unwritten()

    def forget(self, books: Books | None) -> None:
        """The journal is lost, or an older one is back, which said what these books say."""
        self.checker.forget(books)
        self.vain.forget()
        self.acknowledged.forget()

    def furnish(self) -> None:
        """Machines of an earlier daemon, ready to be adopted: the wanted mix, loaded."""
        furnish(self.world, self.pool)
        self.checker.nobody_knows()

    def unsettled(self, now: float) -> str:
        """What is missing for the pool to be as it is wanted; empty when nothing is."""
        why = self.checker.unsettled(now)
        return why or ("" if self.world.idle else "the world is not done yet")


def draws(seed: int, purpose: str) -> random.Random:
    """What a run draws for one purpose."""
    return random.Random(f"{purpose}/{seed}")  # noqa: S311 - a simulation, no secrets
