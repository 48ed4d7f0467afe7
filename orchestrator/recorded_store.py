"""A daemon as a simulated process, and its real journal: a write is an effect, a kill leaves the disk be."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cloud.ports import Clock
from cloud.sim.effects import Effects
from orchestrator.codec import encode
from orchestrator.config import Config
from orchestrator.daemon import Daemon
from orchestrator.lease import FileLease
from orchestrator.pair import Shared
from orchestrator.shared_lease import SCHEMA, SharedLease
from orchestrator.store import StoreUnavailable, Superseded, node_of
from orchestrator.store_sqlite import SqliteFile, SqliteStore
from policies.economics import Charge
from policies.events import Event, IntentOpened
from policies.memory import Memory


class RecordedStore(SqliteStore):
    """The real journal; each write is an effect, so that a daemon can be killed before and after it."""

    effects: Effects
    hear: Callable[[Sequence[Event], bool], None]  # events, and whether they are written
    _acted_on: Sequence[Event] = ()  # heard already, and not written yet

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
            known = {id(e) for e in self._acted_on}
            news = [e for e in events if id(e) not in known]
            try:
                await super(RecordedStore, self).append(pool, events)
            except Superseded:
                raise  # it ends, and does nothing more
            except StoreUnavailable:
                # Drains go on without the journal, calls on the cloud do not.
                news = [e for e in news if not isinstance(e, IntentOpened)]
                self._acted_on = [*self._acted_on, *news]
                self.hear(news, False)
                raise
            self._acted_on = ()
            self.hear(news, True)

        await self.effects.record("journal", "append", write, detail=f"{names} {check:08x}")

    async def snapshot(self, pool: str, memory: Memory, *, keep_after: float) -> None:
        """See Store."""
        await self.effects.record(
            "journal",
            "snapshot",
            lambda: super(RecordedStore, self).snapshot(pool, memory, keep_after=keep_after),
        )

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, on_demand_usd: float, until: float
    ) -> None:
        """See Store."""
        await self.effects.record(
            "journal",
            "charge",
            lambda: super(RecordedStore, self).charge(
                pool, charges, on_demand_usd=on_demand_usd, until=until
            ),
        )


@dataclass(kw_only=True)
class SimProcess:
    """One daemon as a simulated process: `ended` says why it is no more, empty while it lives.

    `ahead`: seconds by which its clock is ahead of the world's. `supervised`: it is started again when it
    ends by itself. `paired`: it is one of a pair.
    """

    name: str
    daemon: Daemon
    up_since: float | None = None
    ahead: float = 0.0
    frozen: bool = False
    supervised: bool = False
    paired: bool = False
    ended: str = ""
    leases: list[FileLease | SharedLease] = field(default_factory=list)
    stores: list[RecordedStore] = field(default_factory=list)


def on_host(config: Config, host: str) -> Config:
    """The configuration on one host of a pair. The state directory of `config` is what they share."""
    shared = config.daemon.state_dir
    shared.mkdir(exist_ok=True)
    where = {"state_dir": shared.with_name(f"{shared.name}-{host}"), "store": "postgresql://simulated"}
    return replace(config, daemon=config.daemon.model_copy(update=where))


def simulated_pair(store: RecordedStore, config: Config, *, clock: Clock, seat: str) -> Shared:
    """What two simulated hosts share: a journal and a lease in one file, in the place of a server."""
    file = SqliteFile(store.path)
    with contextlib.closing(file.connect()) as db, db:
        for statement in SCHEMA:
            db.execute(statement)
    lease = SharedLease(
        file, clock=clock, seat=seat, pool=config.pool_name, seconds=config.daemon.lease, inline=True
    )
    return Shared(store=store, lease=lease)


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


def _name(event: Event) -> str:
    """An event in few words, for traces."""
    words = [type(event).__name__, str(getattr(event, "kind", "")), node_of(event) or ""]
    words.append(str(getattr(event, "outcome", "")))
    return " ".join(word for word in words if word)
