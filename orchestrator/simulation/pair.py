"""Two simulated control hosts: what they share, and which of their daemons may act."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cloud.ports import Clock
from cloud.sim.balancer import TargetTable
from cloud.sim.effects import Effect, Moment
from cloud.sim.invariants import DaemonState
from cloud.sim.world import SimWorld
from orchestrator.config.load import Config
from orchestrator.journal.database import LEASE, Fence
from orchestrator.journal.sqlite import SqliteFile
from orchestrator.lease.pair import Shared
from orchestrator.lease.shared import SharedLease
from orchestrator.simulation.recorded_store import RecordedStore, SimProcess
from orchestrator.simulation.virtual_time import current_process


def on_host(config: Config, host: str) -> Config:
    """The configuration on one host of a pair. The state directory of `config` is what they share."""
    shared = config.daemon.state_dir
    shared.mkdir(exist_ok=True)
    where = {"state_dir": shared.with_name(f"{shared.name}-{host}"), "store": "postgresql://simulated"}
    return replace(config, daemon=config.daemon.model_copy(update=where))


class _Served(SqliteFile):
    """A file in the place of a server, which may not answer this host."""

    def __init__(self, path: Path, answers: Callable[[], bool]) -> None:
        super().__init__(path)
        self._answers = answers

    @contextlib.contextmanager
    def transaction(self, db: sqlite3.Connection, fence: Fence | None) -> Iterator[None]:
        """See Backend."""
        if not self._answers():
            raise sqlite3.OperationalError("nothing answers (simulated)")
        with super().transaction(db, fence):
            yield


class SimDatabase:
    """What simulated hosts share: a journal and a lease in one file, in the place of a server.

    `silent`: the hosts that it does not answer, each since when. `answered_at`: when one was answered again.
    `epoch`: the newest of which a daemon was seen to lead.
    """

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self._hosts: set[str] = set()
        self.silent: dict[str, float] = {}
        self.answered_at = -math.inf
        self.epoch = 0

    def shared(self, store: RecordedStore, config: Config, *, clock: Clock, seat: str, host: str) -> Shared:
        """The two for a daemon on a host."""
        self._hosts.add(host)
        file = _Served(store.path, lambda: host not in self.silent)
        with contextlib.closing(file.connect()) as db, db:
            for statement in LEASE:
                db.execute(statement)
        store.serve_from(file)
        lease = SharedLease(
            file, clock=clock, seat=seat, pools=tuple(config.pools), seconds=config.daemon.lease, inline=True
        )
        return Shared(store=store, lease=lease)

    def lose(self, *hosts: str) -> None:
        """It answers these hosts no more; without a name none."""
        now = self._world.clock.now()
        self.silent = dict.fromkeys(hosts or sorted(self._hosts), now) | self.silent
        self._world.trace.add("database silent", *sorted(self.silent))

    def regain(self) -> None:
        """It answers every host again."""
        self.silent, self.answered_at = {}, self._world.clock.now()
        self._world.trace.add("database answers")

    def nobody_leads_since(self, lease: float) -> float | None:
        """Since when no daemon can have the lease, which lasts so long; None while one may."""
        if not self._hosts or not self._hosts <= self.silent.keys():
            return None
        since = max(self.silent.values()) + lease
        return since if self._world.clock.now() >= since else None


def acting(living: Sequence[SimProcess]) -> SimProcess | None:
    """Of the daemons that have not ended, oldest first, the one that is up; of a pair the one that leads, or
    did last."""
    up = [process for process in reversed(living) if process.up_since is not None]
    leading = [process for process in up if not process.paired or process.leads]
    return next(iter(leading or up), None)


def state_of(
    living: Sequence[SimProcess], database: SimDatabase, pool: str, *, now: float
) -> DaemonState | None:
    """What the checker needs to know of it; None where none can act: frozen, or another took over since."""
    process = acting(living)
    if process is None or process.frozen or process.up_since is None:
        return None
    run = process.daemon.runs.get(pool)
    if run is None or run.loop is None or run.why_down():
        return None
    failsafe = False
    if process.paired and process.leads:
        database.epoch = max(database.epoch, process.epoch)
    elif process.paired:
        if process.epoch < database.epoch:
            return None
        failsafe = process.failsafe
        if not failsafe:
            process.idle_at = now  # it may do nothing until it knows more
    memory = run.loop.memory
    return DaemonState(
        up_since=max(process.up_since, run.began_at, process.idle_at, database.answered_at),
        known=memory.nodes.keys(),
        woke_at=process.woke_at,
        ahead=process.ahead,
        failsafe=failsafe,
        doubtful=tuple(
            i.placement
            for i in memory.intents.values()
            if i.placement is not None and i.landed and i.accepted_at is None
        ),
    )


class OneWriter:
    """`one-writer`: once a daemon has written the target set, no daemon before it writes one any more.

    `processes` are all daemons, in the order in which they were started. `report` takes what breaks.
    """

    def __init__(
        self,
        world: SimWorld,
        table: TargetTable,
        processes: Sequence[SimProcess],
        *,
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
    ) -> None:
        self._table, self._processes, self._checked, self._report = table, processes, checked, report
        self._accepted = 0
        self._wrote: tuple[str, int] | None = None  # who wrote last, and its place in order
        world.effects.watchers.append(self._on_effect)

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        if effect.kind != "apply" or moment is not Moment.AFTER:
            return
        process = next((p for p in self._processes if p.name == current_process()), None)
        if process is None:
            return
        accepted, self._accepted = self._table.accepted > self._accepted, self._table.accepted
        if not accepted:
            return
        self._checked("one-writer")
        # of a pair the one that was started first may take over later
        order = process.epoch if process.paired else self._processes.index(process)
        if self._wrote is not None and order < self._wrote[1]:
            text = f"{process.name} wrote a target set after {self._wrote[0]} had taken over"
            self._report("one-writer", process.name, text)
        else:
            self._wrote = (process.name, order)
