"""A daemon as a simulated process, and its real journal: a write is an effect, a kill leaves the disk be."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from cloud.sim.effects import Effects
from cloud.sim.world import SimWorld
from orchestrator.daemon.daemon import Daemon
from orchestrator.journal.codec import UnknownRecord, decode_event, encode
from orchestrator.journal.database import Lane
from orchestrator.journal.file import JournalError, JournalFile
from orchestrator.journal.sqlite import SqliteFile, SqliteStore
from orchestrator.journal.store import StoreUnavailable, Superseded, node_of
from orchestrator.lease.file import FileLease
from orchestrator.lease.shared import SharedLease
from orchestrator.loop.loop import Loop
from policies.economics import BaselineHour, Charge
from policies.events import Event, IntentOpened, NoticeSeen
from policies.memory import Memory

T = TypeVar("T")


class RecordedStore(SqliteStore):
    """The real journal; each write is an effect, so that a daemon can be killed before and after it."""

    effects: Effects
    hear: Callable[[str, Sequence[Event], bool, Sequence[Event]], None]  # see `SimPool.hear`
    slow: Callable[[], float] = staticmethod(lambda: 0.0)  # seconds that a write takes now

    def __init__(self, file: SqliteFile, *, inline: bool) -> None:
        super().__init__(file, inline=inline)
        self._acted_on: dict[str, list[Event]] = {}  # by pool: heard already, and not written yet
        self._over = False

    def notices(self, pool: str) -> set[tuple[str, str, str]] | None:
        """Source, id and node of every notice that the file tells of, as it is; None where it is damaged."""
        try:
            with JournalFile.open(self.path) as file:
                told = [decode_event(e.kind, e.body) for e in file.events() if e.pool == pool]
            held = _at_once(self.load(pool))
        except (JournalError, StoreUnavailable, UnknownRecord):
            return None
        notices = [event.notice for event in told if isinstance(event, NoticeSeen)]
        records = (*(record.notices for record in held.nodes.values()), *held.early_notices.values())
        return {(n.source, n.id, n.node) for n in (*notices, *chain(*records))}

    def close(self) -> None:
        """See Store."""
        self._over = True
        super().close()

    def serve_from(self, file: SqliteFile) -> None:
        """Go on with another way to the same file."""
        self._backend = file
        self._writer = self._reader = Lane(file, inline=True)

    async def next_epoch(self, now: float, *, after: int = 0) -> int:
        """See Store."""
        return await self.effects.record(
            "journal", "epoch", lambda: super(RecordedStore, self).next_epoch(now, after=after)
        )

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        """See Store."""
        if not events:
            return
        names = ", ".join(_name(e) for e in events)
        check = zlib.crc32(b"".join(encode(e) for e in events))

        async def write() -> None:
            known = {id(e) for e in self._acted_on.get(pool, ())}
            news = [e for e in events if id(e) not in known]
            if wait := self.slow():
                self.foresee(pool, events)
                news = [e for e in news if isinstance(e, IntentOpened)]
                await self.effects.clock.sleep(wait)
                if self._over:
                    return
            try:
                await super(RecordedStore, self).append(pool, events)
            except Superseded:
                raise  # it ends, and does nothing more
            except StoreUnavailable:
                self.foresee(pool, news)
                raise
            written = {id(e) for e in events}
            waits = [e for e in self._acted_on.pop(pool, ()) if id(e) not in written]
            if waits:
                self._acted_on[pool] = waits
            self.hear(pool, news, True, events if waits else ())

        await self.effects.record("journal", "append", write, detail=f"{names} {check:08x}")

    def foresee(self, pool: str, events: Sequence[Event]) -> None:
        """These wait to be written: drains go on without the journal, calls on the cloud do not."""
        known = {id(e) for e in self._acted_on.get(pool, ())}
        news = [e for e in events if not isinstance(e, IntentOpened) and id(e) not in known]
        if news:
            self._acted_on.setdefault(pool, []).extend(news)
            self.hear(pool, news, False, ())

    async def snapshot(self, pool: str, memory: Memory, *, keep_after: float) -> None:
        """See Store."""
        await self.effects.record(
            "journal",
            "snapshot",
            lambda: super(RecordedStore, self).snapshot(pool, memory, keep_after=keep_after),
        )

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, baseline: Sequence[BaselineHour], until: float
    ) -> None:
        """See Store."""
        await self.effects.record(
            "journal",
            "charge",
            lambda: super(RecordedStore, self).charge(pool, charges, baseline=baseline, until=until),
        )


@dataclass(kw_only=True)
class SimProcess:
    """One daemon as a simulated process: `ended` says why it is no more, empty while it lives.

    `ahead`: seconds by which its clock is ahead of the world's. `supervised`: it is started again when it
    ends by itself. `paired`: it is one of a pair. `woke_at`: when it was thawed last, `idle_at`: when it was
    last seen without the right to do anything.
    """

    name: str
    daemon: Daemon
    up_since: float | None = None
    ahead: float = 0.0
    frozen: bool = False
    supervised: bool = False
    paired: bool = False
    ended: str = ""
    woke_at: float = -math.inf
    idle_at: float = -math.inf
    leases: list[FileLease | SharedLease] = field(default_factory=list)
    stores: list[RecordedStore] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The one that it began last, 0 for none."""
        return self.stores[-1].epoch if self.stores else 0

    def loop(self, pool: str) -> Loop | None:
        """The loop of a pool; None while that does not run."""
        run = self.daemon.runs.get(pool)
        return run.loop if run is not None else None

    @property
    def leads(self) -> bool:
        """It holds the lease now, frozen or not."""
        return not self.ended and bool(self.leases) and self.leases[-1].valid()

    @property
    def failsafe(self) -> bool:
        """Its lease has run out, since the database does not answer."""
        return not self.ended and bool(self.leases) and self.leases[-1].unanswered() is not None


class Foresight:
    """Where a write of the journal takes long, what it is about to say is in force already, and is heard."""

    def __init__(
        self, world: SimWorld, pools: Sequence[str], running: Callable[[], SimProcess | None]
    ) -> None:
        self._world, self._pools, self._running = world, pools, running
        self._lags = False

    def look(self) -> None:
        """Hear what waits to be written by the daemon that is up."""
        process = self._running() if self._world.faults.slow_disk or self._lags else None
        self._lags = False
        if process is None or process.frozen or not process.stores:
            return
        for pool in self._pools:
            loop = process.loop(pool)
            if loop is not None and loop.waiting:
                self._lags = True
                process.stores[-1].foresee(pool, loop.waiting)


@contextlib.contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Keep a SQLite file and its log as they are on disk: closing a connection would tidy them up.

    A killed process tidies up nothing, and the next one has to recover from what is there.
    """
    files = [path, path.with_name(path.name + "-wal")]
    kept = {file: file.read_bytes() for file in files if file.exists()}
    yield
    for file in files:
        file.unlink(missing_ok=True)
        if file in kept:
            file.write_bytes(kept[file])


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that waits for nothing returns."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    work.close()
    raise RuntimeError("the journal of a simulation is read in place")


def _name(event: Event) -> str:
    """An event in few words, for traces."""
    words = [type(event).__name__, str(getattr(event, "kind", "")), node_of(event) or ""]
    words.append(str(getattr(event, "outcome", "")))
    return " ".join(word for word in words if word)
