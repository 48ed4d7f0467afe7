"""The journal: events, intents with their outcomes, recorded turns and the cost ledger, in one database.

`SqliteStore` keeps it in a file, `PostgresStore` on a server that two control hosts share; what is written is
the same. What `append` returned for survives a kill -9 at any instant. One thread writes; reads have a
connection and a thread of their own. `inline=True` runs every call in place, for loops without threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from orchestrator.journal import hours, turn_log
from orchestrator.journal.codec import (
    UnknownRecord,
    decode_event,
    decode_memory,
    encode,
    encode_memory,
    printable,
)
from orchestrator.journal.database import Backend, Database, Fence, Lane, StoreUnavailable, Superseded
from orchestrator.journal.turn_log import Carried, TurnLog, prune
from policies.economics import BaselineHour, Charge, SpendHour
from policies.events import Event, IntentClosed, IntentOpened
from policies.memory import Memory, reduce

__all__ = [
    "Journal",
    "Store",
    "StoreUnavailable",
    "StoredEvent",
    "Superseded",
    "Totals",
    "decoded",
    "migrate",
    "node_of",
    "raise_epoch",
]

SCHEMA_VERSION: Final = 3

GATEWAY: Final = "@gateway"
"""The stream of what concerns the gateway's routes and providers, and no pool."""

_LEAVING: Final = "leaving/"
"""Keys in `meta` of the settings of pools that are being removed begin so."""

_MUCH: Final = 10.0
"""How many times as long as other calls those may take that read or write a whole memory."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS events ("
        "seq INTEGER PRIMARY KEY AUTOINCREMENT, pool TEXT NOT NULL, at REAL NOT NULL, "
        "kind TEXT NOT NULL, node TEXT, body BLOB NOT NULL)",
        "CREATE INDEX IF NOT EXISTS events_node ON events (node, seq) WHERE node IS NOT NULL",
        "CREATE TABLE IF NOT EXISTS intents ("
        "pool TEXT NOT NULL, token TEXT NOT NULL, kind TEXT NOT NULL, node TEXT, opened_at REAL NOT NULL, "
        "asked INTEGER NOT NULL DEFAULT 1, outcome TEXT, closed_at REAL, detail TEXT, reason TEXT, "
        "PRIMARY KEY (pool, token, opened_at))",
        "CREATE TABLE IF NOT EXISTS snapshots "
        "(pool TEXT PRIMARY KEY, seq INTEGER NOT NULL, body BLOB NOT NULL)",
        "CREATE TABLE IF NOT EXISTS ledger ("
        "pool TEXT NOT NULL, node TEXT NOT NULL, market TEXT NOT NULL, seconds REAL NOT NULL, "
        "usd REAL NOT NULL, PRIMARY KEY (pool, node))",
        "CREATE TABLE IF NOT EXISTS totals ("
        "pool TEXT PRIMARY KEY, usd REAL NOT NULL, on_demand_usd REAL NOT NULL, charged_until REAL NOT NULL)",
    ),
    ("ALTER TABLE events ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0", *turn_log.SCHEMA),
    (
        "CREATE TABLE IF NOT EXISTS spend_hours ("
        "pool TEXT NOT NULL, hour INTEGER NOT NULL, region TEXT NOT NULL, zone TEXT NOT NULL, "
        "instance TEXT NOT NULL, market TEXT NOT NULL, seconds REAL NOT NULL, usd REAL NOT NULL, "
        "unit_seconds REAL NOT NULL, ready_unit_seconds REAL NOT NULL, unpriced REAL NOT NULL, "
        "PRIMARY KEY (pool, hour, region, zone, instance, market))",
        "CREATE TABLE IF NOT EXISTS baseline_hours ("
        "pool TEXT NOT NULL, hour INTEGER NOT NULL, on_demand_usd REAL NOT NULL, "
        "wanted_unit_seconds REAL NOT NULL, unpriced REAL NOT NULL, PRIMARY KEY (pool, hour))",
        hours.NOTE_SINCE,
    ),
)
"""What brings a journal to each version, from the first on. Once released, a step is never changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One journal entry."""

    seq: int
    at: float
    pool: str
    kind: str
    node: str | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Money since the journal began: spent, what on-demand would have cost, and counted until when."""

    usd: float = 0.0
    on_demand_usd: float = 0.0
    charged_until: float | None = None


class Journal(Protocol):
    """What the loop needs of a store."""

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        """Write events durably, in order, all or none. Raises StoreUnavailable."""
        ...

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, baseline: Sequence[BaselineHour], until: float
    ) -> None:
        """Add to the ledger. Raises StoreUnavailable."""
        ...


class Store:
    """One journal: a stream of events, a snapshot and an account for each pool, all under one epoch.

    Recorded turns are kept for `keep_turns_for` seconds, and as many as fit into `keep_turns_bytes`, of which
    each pool has an equal share.
    """

    def __init__(self, backend: Backend[Any], *, inline: bool) -> None:
        self._backend = backend
        self.epoch = 0
        self.keep_turns_for = 0.0
        self.keep_turns_bytes = 0
        self._turns: dict[str, TurnLog] = {}
        self._unsure: set[str] = set()  # pools whose newest append did not go well, or not yet
        self._writer: Lane[Any] = Lane(backend, inline=inline)
        self._reader: Lane[Any] = self._writer if inline else Lane(backend, inline=False, reads=True)

    async def next_epoch(self, now: float, *, after: int = 0) -> int:
        """Begin a new epoch, higher than any in this journal, than `after`, and by the clock in lost ones."""
        epoch = await self._writer.run(lambda db: raise_epoch(db, now, after=after))
        self.begin_epoch(epoch)
        return epoch

    def begin_epoch(self, epoch: int) -> None:
        """Write under this epoch from now on, which the lease has begun: until another one begins."""
        self.epoch = epoch
        self._writer.fence = Fence(epoch)

    def turns(self, pool: str) -> TurnLog:
        """What is to be recorded of a pool's loop."""
        return self._turns.setdefault(pool, TurnLog())

    async def load(self, pool: str) -> Memory:
        """Memory as of the last entry: the snapshot and the events after it.

        Entries that cannot be read are skipped: adoption and the next observation restore what they said.
        What the pool has under way is written first; the reading itself holds up no other pool's writes.
        """

        def read(db: Database) -> Memory:
            memory, after = Memory(), 0
            row = db.execute("SELECT seq, body FROM snapshots WHERE pool=?", (pool,)).fetchone()
            if row is not None:
                try:
                    memory, after = decode_memory(row[1]), row[0]
                except UnknownRecord:
                    after = 0
            events = []
            for kind, body in db.execute(
                "SELECT kind, body FROM events WHERE pool=? AND seq>? ORDER BY seq", (pool, after)
            ):
                try:
                    events.append(decode_event(kind, body))
                except UnknownRecord:
                    continue
            return reduce(memory, *events)

        await self._writer.run(lambda _: None, longer=_MUCH)
        return await self._reader.run(read, longer=_MUCH)

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        """Write events durably, in order, all or none. Raises StoreUnavailable."""
        if not events:
            return
        epoch, turns = self.epoch, self.turns(pool)
        rows = [(pool, e.at, type(e).__name__, node_of(e), encode(e), epoch) for e in events]
        room = pool not in self._unsure  # only after one that went well may the next one take turns along
        self._unsure.add(pool)

        def write(db: Database) -> Carried:
            db.executemany(
                "INSERT INTO events (pool, at, kind, node, body, epoch) VALUES (?,?,?,?,?,?)", rows
            )
            after = self._backend.last_event(db) - len(rows)
            for event in events:
                if isinstance(event, IntentOpened):
                    _open_intent(db, pool, event)
                elif isinstance(event, IntentClosed):
                    _close_intent(db, pool, event)
            return turns.carry(db, epoch, after=after, events=events, room=room)

        await self._writer.run(write, committed=turns.committed)
        self._unsure.discard(pool)

    async def flush(self, pool: str) -> None:
        """Write a pool's held turns, as far as all that they know is on disk. Raises StoreUnavailable."""
        turns, waiting = self.turns(pool), 0
        while turns.waiting not in (0, waiting):
            waiting = turns.waiting
            await self._writer.run(partial(self._carry, turns), committed=turns.committed)

    def _carry(self, turns: TurnLog, db: Database) -> Carried:
        return turns.carry(db, self.epoch, after=self._backend.last_event(db))

    async def snapshot(self, pool: str, memory: Memory, *, keep_after: float) -> None:
        """Store memory and drop events that it covers and that are older than `keep_after`.

        Recorded turns that are too old or too much go with them; events that others need to be replayed stay.
        """

        def write(db: Database) -> None:
            seq = db.execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()[0]
            body = encode_memory(memory)
            db.execute(
                "INSERT INTO snapshots VALUES (?,?,?) "
                "ON CONFLICT (pool) DO UPDATE SET seq=excluded.seq, body=excluded.body",
                (pool, seq, body),
            )
            share = self.keep_turns_bytes // max(1, len(self._turns))
            needed = prune(db, pool, keep_for=self.keep_turns_for, keep_bytes=share)
            last = seq if needed is None else min(seq, needed)
            db.execute("DELETE FROM events WHERE pool=? AND seq<=? AND at<?", (pool, last, keep_after))
            db.execute("DELETE FROM intents WHERE pool=? AND closed_at<?", (pool, keep_after))

        await self._writer.run(write, longer=_MUCH)

    async def note_leaving(self, pool: str, settings: str) -> None:
        """Keep the settings of a pool that is being removed, until `note_left`: no file has them any more."""
        await self._writer.run(lambda db: put_meta(db, f"{_LEAVING}{pool}", settings))

    async def note_left(self, pool: str) -> None:
        """A pool is not being removed, or not any more."""
        await self._writer.run(lambda db: db.execute("DELETE FROM meta WHERE key=?", (f"{_LEAVING}{pool}",)))

    async def leaving(self) -> dict[str, str]:
        """The pools that are being removed, with their settings."""
        rows = await self._writer.run(lambda db: db.execute("SELECT key, value FROM meta").fetchall())
        return {key.removeprefix(_LEAVING): value for key, value in rows if key.startswith(_LEAVING)}

    async def pools(self) -> list[str]:
        """All pools that have a stream here."""
        query = "SELECT pool FROM snapshots UNION SELECT pool FROM events ORDER BY pool"
        return [pool for (pool,) in await self._writer.run(lambda db: db.execute(query).fetchall())]

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, baseline: Sequence[BaselineHour], until: float
    ) -> None:
        """Add charges to the ledger and its hours, and move `charged_until`. Raises StoreUnavailable."""
        turns = self.turns(pool)

        def write(db: Database) -> Carried:
            hours.add(db, pool, charges, baseline=baseline, until=until)
            return self._carry(turns, db)

        await self._writer.run(write, committed=turns.committed)

    async def totals(self, pool: str) -> Totals:
        """Money since the journal began."""

        def read(db: Database) -> Totals:
            row = db.execute(
                "SELECT usd, on_demand_usd, charged_until FROM totals WHERE pool=?", (pool,)
            ).fetchone()
            return Totals() if row is None else Totals(usd=row[0], on_demand_usd=row[1], charged_until=row[2])

        return await self._reader.run(read)

    async def counted(self, pool: str) -> dict[str, float]:
        """The seconds for which each node was charged."""
        query = "SELECT node, seconds FROM ledger WHERE pool=?"
        rows = await self._reader.run(lambda db: db.execute(query, (pool,)).fetchall(), longer=_MUCH)
        return dict(rows)

    async def spend_hours(self, since: int, until: int, *, pool: str = "") -> list[SpendHour]:
        """What nodes cost in the hours from `since` up to `until`, of one pool or of all. See `hours`."""
        return await self._reader.run(partial(hours.spend, since=since, until=until, pool=pool), longer=_MUCH)

    async def baseline_hours(self, since: int, until: int, *, pool: str = "") -> list[BaselineHour]:
        """What the wanted units would have cost on-demand in these hours."""
        read = partial(hours.baseline, since=since, until=until, pool=pool)
        return await self._reader.run(read, longer=_MUCH)

    async def hours_since(self) -> dict[str, float]:
        """Since when the hours are known, of the pools whose account is older than that."""
        return await self._reader.run(hours.since)

    async def events(
        self, *, after: int = 0, limit: int = 1000, node: str = "", pool: str = "", newest: bool = False
    ) -> list[StoredEvent]:
        """Entries after a number, oldest first; `newest` takes the last `limit` of them."""
        where, values = "seq > ?", [after]
        for column, value in (("node", node), ("pool", pool)):
            if value:
                where += f" AND {column} = ?"
                values.append(value)  # type: ignore[arg-type]
        order = "DESC" if newest else "ASC"
        query = (
            f"SELECT seq, at, pool, kind, node, body FROM events WHERE {where} "  # noqa: S608
            f"ORDER BY seq {order} LIMIT ?"
        )

        def read(db: Database) -> list[StoredEvent]:
            rows = db.execute(query, (*values, limit)).fetchall()
            found = [StoredEvent(seq=r[0], at=r[1], pool=r[2], kind=r[3], node=r[4], body=r[5]) for r in rows]
            return found[::-1] if newest else found

        return await self._reader.run(read)

    async def last_seq(self) -> int:
        """The number of the newest entry, 0 when there is none."""
        seq: int = await self._reader.run(
            lambda db: db.execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()[0]
        )
        return seq

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._writer.close()
        if self._reader is not self._writer:
            self._reader.close()


def raise_epoch(db: Database, now: float, *, after: int = 0) -> int:
    """Write a new epoch down: the next number, `after` another too, or the time of day where it is more."""
    row = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
    epoch = max(after + 1, int(row[0]) + 1 if row else 1, int(now))
    put_meta(db, "epoch", str(epoch))
    return epoch


def put_meta(db: Database, key: str, value: str) -> None:
    """Set one value of the table of facts about the journal."""
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value", (key, value)
    )


def migrate(db: Database, where: str, version: int) -> None:
    """Bring the tables of a journal from a version to this one, within a transaction.

    Raises StoreUnavailable for one of a newer version, which is left as it is.
    """
    if version > SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{where}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}); "
            "install that version, or give this one an empty journal to start from what the cloud shows"
        )
    for step in MIGRATIONS[version:]:
        for statement in step:
            db.execute(statement)
    put_meta(db, "schema", str(SCHEMA_VERSION))


def node_of(event: Event) -> str | None:
    """The node that an event is about, if any."""
    notice = getattr(event, "notice", None)
    node = notice.node if notice is not None else getattr(event, "node", None)
    return printable(node) if node else None


def _open_intent(db: Database, pool: str, event: IntentOpened) -> None:
    asked = db.execute(
        "UPDATE intents SET asked=asked+1 WHERE pool=? AND token=? AND outcome IS NULL", (pool, event.token)
    ).rowcount
    if not asked:
        db.execute(
            "INSERT INTO intents (pool, token, kind, node, opened_at, reason) VALUES (?,?,?,?,?,?) "
            "ON CONFLICT (pool, token, opened_at) DO UPDATE SET kind=excluded.kind, node=excluded.node, "
            "asked=1, outcome=NULL, closed_at=NULL, detail=NULL, reason=excluded.reason",
            (pool, event.token, str(event.kind), node_of(event), event.at, printable(event.reason)),
        )


def _close_intent(db: Database, pool: str, event: IntentClosed) -> None:
    db.execute(
        "UPDATE intents SET outcome=?, closed_at=?, detail=?, node=COALESCE(?, node) "
        "WHERE pool=? AND token=? AND outcome IS NULL",
        (str(event.outcome), event.at, printable(event.detail), node_of(event), pool, event.token),
    )


def decoded(entries: Iterable[StoredEvent]) -> list[Event]:
    """The events of journal entries; raises UnknownRecord for one that cannot be read."""
    return [decode_event(e.kind, e.body) for e in entries]
