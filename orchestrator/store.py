"""The journal: events, intents with their outcomes, recorded turns and the cost ledger, in one SQLite file.

WAL with synchronous=FULL: what `append` returned for survives a kill -9 at any instant, and a power loss as
far as the disk keeps its word. One thread writes; reads have a connection and a thread of their own. A file
that SQLite cannot read is set aside with its name and time and a new one begun: the daemon then knows nothing
and rebuilds its memory by adopting what the cloud shows. `inline=True` runs every call in place, for loops
that permit no threads.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from orchestrator import turn_log
from orchestrator.codec import UnknownRecord, decode_event, decode_memory, encode, encode_memory, printable
from orchestrator.turn_log import Carried, TurnLog
from policies.economics import Charge
from policies.events import Event, IntentClosed, IntentOpened
from policies.memory import Memory, reduce

R = TypeVar("R")

SCHEMA_VERSION = 2

_BUSY_WAIT = 0.5
"""Seconds to wait for another process that holds the file: a turn of the loop, and so a notice, waits too."""

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
)
"""What brings a file to each version, from the first on. Once released, a step is never changed."""

_SET_ASIDE = "is corrupt: restart the daemon, which sets it aside and starts from what the cloud shows"


class StoreUnavailable(Exception):
    """The journal cannot be read or written now. The message says why and what to do."""


class Superseded(StoreUnavailable):
    """Another daemon writes this journal now. Whoever hears this ends: it lost the lease as well."""


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
        self, pool: str, charges: Sequence[Charge], *, on_demand_usd: float, until: float
    ) -> None:
        """Add to the ledger. Raises StoreUnavailable."""
        ...


class Store:
    """One SQLite journal. Open it with `Store.open`. `turns` holds what is to be recorded of the loop."""

    def __init__(self, path: Path, *, inline: bool) -> None:
        self.path = path
        self.turns = TurnLog()
        self._healthy = True  # the newest append went well: only then may the next one take turns along
        self.set_aside: Path | None = None
        self._writer = _Lane(path, inline=inline)
        self._reader = self._writer if inline else _Lane(path, inline=False)

    @classmethod
    def open(cls, path: Path, *, now: float, inline: bool = False) -> Store:
        """Open or create the journal at `path`.

        A corrupt file is renamed to NAME.corrupt-TIME (see `set_aside`), never over an older one, and a new
        one is created. Raises
        StoreUnavailable when the directory is not writable, the disk is full, or the file was written by a
        newer version.
        """
        aside = None
        try:
            _prepare(path)
        except sqlite3.DatabaseError as error:
            if not _is_corruption(error):
                raise _unavailable(path, error) from error
            aside = _free_name(path.with_name(f"{path.name}.corrupt-{int(now)}"))
            try:
                for suffix in ("", "-wal", "-shm"):
                    part = path.with_name(path.name + suffix)
                    if part.exists():
                        part.rename(aside.with_name(aside.name + suffix))
            except OSError as refused:
                raise StoreUnavailable(
                    f"{path}: is corrupt ({error}) and cannot be set aside ({refused.strerror}); move it away"
                ) from refused
            try:
                _prepare(path)
            except sqlite3.DatabaseError as again:
                raise _unavailable(path, again) from again
        store = cls(path, inline=inline)
        store.set_aside = aside
        return store

    async def next_epoch(self, now: float) -> int:
        """A new epoch, higher than any before it in this journal and, by the clock, in lost ones."""

        def write(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
            epoch = max(int(row[0]) + 1 if row else 1, int(now))
            db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
            return epoch

        self.turns.epoch = self._writer.epoch = epoch = await self._writer.run(write)
        return epoch

    async def load(self, pool: str) -> Memory:
        """Memory as of the last entry: the snapshot and the events after it.

        Entries that cannot be read are skipped: adoption and the next observation mend what they said.
        """

        def read(db: sqlite3.Connection) -> Memory:
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

        return await self._writer.run(read)

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        """Write events durably, in order, all or none. Raises StoreUnavailable."""
        if not events:
            return
        epoch = self.turns.epoch
        rows = [(pool, e.at, type(e).__name__, node_of(e), encode(e), epoch) for e in events]
        healthy, self._healthy = self._healthy, False

        def write(db: sqlite3.Connection) -> Carried:
            db.executemany(
                "INSERT INTO events (pool, at, kind, node, body, epoch) VALUES (?,?,?,?,?,?)", rows
            )
            after = _last_event(db) - len(rows)
            for event in events:
                if isinstance(event, IntentOpened):
                    _open_intent(db, pool, event)
                elif isinstance(event, IntentClosed):
                    _close_intent(db, pool, event)
            return self.turns.carry(db, after=after, events=events, room=healthy)

        await self._writer.run(write, committed=self.turns.committed)
        self._healthy = True

    async def flush(self) -> None:
        """Write the held turns, as far as all that they know is on disk. Raises StoreUnavailable."""
        waiting = 0
        while self.turns.waiting not in (0, waiting):
            waiting = self.turns.waiting
            await self._writer.run(
                lambda db: self.turns.carry(db, after=_last_event(db)), committed=self.turns.committed
            )

    async def snapshot(self, pool: str, memory: Memory, *, keep_after: float) -> None:
        """Store memory and drop events that it covers and that are older than `keep_after`.

        Recorded turns that are too old or too much go with them; events that others need to be replayed stay.
        """

        def write(db: sqlite3.Connection) -> None:
            seq = db.execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()[0]
            body = encode_memory(memory)
            db.execute("INSERT OR REPLACE INTO snapshots VALUES (?,?,?)", (pool, seq, body))
            needed = self.turns.prune(db, pool)
            last = seq if needed is None else min(seq, needed)
            db.execute("DELETE FROM events WHERE pool=? AND seq<=? AND at<?", (pool, last, keep_after))
            db.execute("DELETE FROM intents WHERE pool=? AND closed_at<?", (pool, keep_after))

        await self._writer.run(write)

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, on_demand_usd: float, until: float
    ) -> None:
        """Add charges to the ledger and move the pool's `charged_until`. Raises StoreUnavailable."""

        def write(db: sqlite3.Connection) -> Carried:
            db.executemany(
                "INSERT INTO ledger VALUES (?,?,?,?,?) ON CONFLICT (pool, node) DO UPDATE SET "
                "seconds=seconds+excluded.seconds, usd=usd+excluded.usd",
                [(pool, c.node, str(c.market), c.seconds, c.usd) for c in charges],
            )
            db.execute(
                "INSERT INTO totals VALUES (?,?,?,?) ON CONFLICT (pool) DO UPDATE SET usd=usd+excluded.usd, "
                "on_demand_usd=on_demand_usd+excluded.on_demand_usd, charged_until=excluded.charged_until",
                (pool, sum(c.usd for c in charges), on_demand_usd, until),
            )
            return self.turns.carry(db, after=_last_event(db))

        await self._writer.run(write, committed=self.turns.committed)

    async def totals(self, pool: str) -> Totals:
        """Money since the journal began."""

        def read(db: sqlite3.Connection) -> Totals:
            row = db.execute(
                "SELECT usd, on_demand_usd, charged_until FROM totals WHERE pool=?", (pool,)
            ).fetchone()
            return Totals() if row is None else Totals(usd=row[0], on_demand_usd=row[1], charged_until=row[2])

        return await self._reader.run(read)

    async def events(
        self, *, after: int = 0, limit: int = 1000, node: str = "", newest: bool = False
    ) -> list[StoredEvent]:
        """Entries after a number, oldest first; `newest` takes the last `limit` of them."""
        where, values = "seq > ?", [after]
        if node:
            where += " AND node = ?"
            values.append(node)  # type: ignore[arg-type]
        order = "DESC" if newest else "ASC"
        query = (
            f"SELECT seq, at, pool, kind, node, body FROM events WHERE {where} "  # noqa: S608
            f"ORDER BY seq {order} LIMIT ?"
        )

        def read(db: sqlite3.Connection) -> list[StoredEvent]:
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


class _Lane:
    """One connection and the thread that owns it."""

    def __init__(self, path: Path, *, inline: bool) -> None:
        self._path = path
        self.epoch: int | None = None  # under which this lane writes, once it took one
        self._db: sqlite3.Connection | None = None
        self._pool = None if inline else ThreadPoolExecutor(1, thread_name_prefix="store")
        self._closed = False

    async def run(
        self, work: Callable[[sqlite3.Connection], R], *, committed: Callable[[R], None] | None = None
    ) -> R:
        """Run `work` in one transaction, then `committed` in the same thread. Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable(f"{self._path}: the journal is closed")
        if self._pool is None:
            return self._do(work, committed)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._do, work, committed)

    def _do(self, work: Callable[[sqlite3.Connection], R], committed: Callable[[R], None] | None) -> R:
        try:
            if self._db is None:
                self._db = _connect(self._path)
            with legible(), self._db:
                self._keep_out(self._db)
                result = work(self._db)
        except sqlite3.DatabaseError as error:
            raise _unavailable(self._path, error) from error
        if committed is not None:
            committed(result)
        return result

    def _keep_out(self, db: sqlite3.Connection) -> None:
        """Refuse to touch a journal that another daemon has taken over since: two would mix their memories.

        The lease cannot tell in time: this process may have been suspended between its look and its write.
        """
        if self.epoch is None:
            return
        db.execute("BEGIN IMMEDIATE")
        row = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
        held = int(row[0]) if row else 0
        if held != self.epoch:
            raise Superseded(f"{self._path}: another daemon took over (epoch {held}, ours is {self.epoch})")

    def close(self) -> None:
        """Finish what was begun and close the connection. Idempotent."""
        self._closed = True
        if self._pool is not None:
            self._pool.submit(self._shut)
            self._pool.shutdown(wait=True)
            self._pool = None
        else:
            self._shut()

    def _shut(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def node_of(event: Event) -> str | None:
    """The node that an event is about, if any."""
    notice = getattr(event, "notice", None)
    node = notice.node if notice is not None else getattr(event, "node", None)
    return printable(node) if node else None


@contextmanager
def legible() -> Iterator[None]:
    """Make an error of the driver of what is none: messages that name damaged bytes are no text to it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"the file is malformed: {error.object!r}") from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_WAIT, check_same_thread=False)
    with legible():
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
    return db


def _prepare(path: Path) -> None:
    """Bring the tables to this version and check that the file can be read and written."""
    db = _connect(path)
    try:
        with legible(), db:
            db.execute("BEGIN IMMEDIATE")
            version = _schema_version(db)
            if version > SCHEMA_VERSION:
                raise StoreUnavailable(
                    f"{path}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION})"
                    "; install that version, or move the file away to start from what the cloud shows"
                )
            for step in _MIGRATIONS[version:]:
                for statement in step:
                    db.execute(statement)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("database disk image is malformed")
    finally:
        db.close()


def _last_event(db: sqlite3.Connection) -> int:
    """The number of the newest event that was ever written."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name='events'").fetchone()
    return 0 if row is None else int(row[0])


def _schema_version(db: sqlite3.Connection) -> int:
    """The version that wrote the file, 0 for a new one; read before anything is written to it."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE type='table' AND name='meta'").fetchone() is None:
        return 0
    row = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
    try:
        return 0 if row is None else int(row[0])
    except ValueError:
        raise sqlite3.DatabaseError(f"the schema version {row[0]!r} is malformed") from None


def _free_name(path: Path) -> Path:
    """The path itself, or with a number when something is there already."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def _is_corruption(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "malformed" in str(error)


def _unavailable(path: Path, error: sqlite3.DatabaseError) -> StoreUnavailable:
    name = getattr(error, "sqlite_errorname", "")
    advice = {
        "SQLITE_FULL": "the disk is full: free some space; notices are still acted on meanwhile",
        "SQLITE_READONLY": "the file is read-only: check its owner and mode",
        "SQLITE_CANTOPEN": "cannot be opened: check that the state directory exists and is writable",
        "SQLITE_BUSY": "another process holds the file: is a second daemon or a backup running?",
        "SQLITE_IOERR": "the disk fails or is full: check it; notices are still acted on meanwhile",
        "SQLITE_CORRUPT": _SET_ASIDE,
        "SQLITE_NOTADB": _SET_ASIDE,
    }
    known = next((text for key, text in advice.items() if name.startswith(key)), f"{error}")
    return StoreUnavailable(f"{path}: {known}")


def _open_intent(db: sqlite3.Connection, pool: str, event: IntentOpened) -> None:
    asked = db.execute(
        "UPDATE intents SET asked=asked+1 WHERE pool=? AND token=? AND outcome IS NULL", (pool, event.token)
    ).rowcount
    if not asked:
        db.execute(
            "INSERT OR REPLACE INTO intents (pool, token, kind, node, opened_at, reason) "
            "VALUES (?,?,?,?,?,?)",
            (pool, event.token, str(event.kind), node_of(event), event.at, printable(event.reason)),
        )


def _close_intent(db: sqlite3.Connection, pool: str, event: IntentClosed) -> None:
    db.execute(
        "UPDATE intents SET outcome=?, closed_at=?, detail=?, node=COALESCE(?, node) "
        "WHERE pool=? AND token=? AND outcome IS NULL",
        (str(event.outcome), event.at, printable(event.detail), node_of(event), pool, event.token),
    )


def decoded(entries: Iterable[StoredEvent]) -> list[Event]:
    """The events of journal entries; raises UnknownRecord for one that cannot be read."""
    return [decode_event(e.kind, e.body) for e in entries]
