"""The recorded turns of a journal: held in memory until a write takes them along, kept small, read back.

A recording is an unbroken run of recorded turns. It begins with the pool and the memory of its first turn, so
that it can be replayed without anything older: the memory of any turn in it is that memory with the events
after it taken in, up to the turn's own number. Recordings end after an hour, and are deleted whole.

Nothing waits for a record. Turns are held and go along with writes that happen anyway, and never with one
that brings a notice or precedes an action. What is held when the process is killed is lost.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cloud.logger import structlog
from orchestrator import __version__
from orchestrator.journal.codec import encode_memory
from orchestrator.journal.database import Database
from orchestrator.journal.turn_codec import Failure, Packer, encode_pool
from policies.actions import Plan
from policies.events import DrainEnded, DrainStarted, Event, IntentOpened, NoticeSeen
from policies.memory import Memory
from policies.model import Pool, World

log = structlog.get_logger("journal")

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS recordings ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, pool TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "seq INTEGER NOT NULL, at REAL NOT NULL, until REAL NOT NULL, turns INTEGER NOT NULL, "
    "bytes INTEGER NOT NULL, version TEXT NOT NULL, "
    "wanted BLOB NOT NULL, memory BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS turns ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, recording INTEGER NOT NULL, seq INTEGER NOT NULL, "
    "at REAL NOT NULL, body BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS turns_recording ON turns (recording)",
    "CREATE TABLE IF NOT EXISTS parts ("
    "recording INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL, "
    "PRIMARY KEY (recording, digest)) WITHOUT ROWID",
)
"""The tables: recordings, their turns, and columns of their worlds by content."""

TURNS_HELD = 1_000
"""Turns held at most; further ones are not recorded until some were written."""

ROWS_HELD = 200_000
"""Machines in all held turns together, at most: what is held must not fill the memory of the host."""

ROWS_AT_ONCE = 4_000
"""Machines in the turns that go along with one write, at most: about 10 ms of the journal's thread."""

PRUNED_AT_ONCE = 8
"""Recordings that one pruning lets go at most: the journal's thread must soon be free for notices again."""

_URGENT = (NoticeSeen, IntentOpened, DrainStarted, DrainEnded)
"""Events that somebody waits for: what brings them takes nothing along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One turn to be recorded. `begins`: a new recording begins with it; `memory` is needed only then.

    `behind` counts the events that its memory had taken in and that were not on disk when it was held.
    """

    pool: Pool
    world: World
    plan: Plan | Failure
    memory: Memory
    behind: int
    begins: bool


@dataclass(slots=True)
class _Held:
    turn: TurnRecord
    seq: int | None = None  # of the last event that its memory had taken in, once that is on disk


@dataclass(slots=True)
class Carried:
    """What one transaction writes; it counts once it is committed."""

    after: int
    events: int
    turns: list[_Held]
    recording: int | None


class TurnLog:
    """One pool's turns on their way to the disk: its loop lets them be held, the journal's thread writes
    them."""

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._rows = 0
        self._lock = threading.Lock()
        self._packer = Packer()
        self._sound = True  # the packer remembers what is really stored
        self._recording: int | None = None
        self._trouble = ""

    @property
    def waiting(self) -> int:
        """Turns that are held."""
        return len(self._held)

    def hold(self, turn: TurnRecord) -> bool:
        """Take a turn; False when too much is held already and it is not recorded."""
        rows = _rows(turn.world)
        with self._lock:
            if self._held and (len(self._held) >= TURNS_HELD or self._rows + rows > ROWS_HELD):
                return False
            self._held.append(_Held(turn))
            self._rows += rows
        return True

    def forget_unplaced(self) -> None:
        """Let go of turns whose events will never be on disk."""
        with self._lock:
            self._held = [h for h in self._held if h.seq is not None or h.turn.behind == 0]
            self._rows = sum(_rows(h.turn.world) for h in self._held)

    # -- in the journal's thread -------------------------------------------------------------------

    def carry(
        self, db: Database, epoch: int, *, after: int, events: Sequence[Event] = (), room: bool = True
    ) -> Carried:
        """Write some held turns within a transaction that writes `events` of the pool after number `after`.

        None without `room`. What cannot be written of them keeps nothing else out of the journal. Afterwards
        call `committed` with the answer, if the transaction was.
        """
        with self._lock:
            waiting = list(self._held)
        carried = Carried(after=after, events=len(events), turns=[], recording=self._recording)
        if not room or not waiting or any(isinstance(event, _URGENT) for event in events):
            return carried
        if not self._sound:
            self._packer.forget()
        self._sound = False
        db.execute("SAVEPOINT turns")
        try:
            self._write_some(db, epoch, waiting, carried)
        except db.DatabaseError as error:
            db.execute("ROLLBACK TO turns")
            carried.turns, carried.recording = [], self._recording
            if self._trouble != str(error):
                log.error("turns.record_failed", error=str(error))
            self._trouble = str(error)
        else:
            self._trouble = ""
        db.execute("RELEASE turns")
        return carried

    def _write_some(self, db: Database, epoch: int, waiting: Sequence[_Held], carried: Carried) -> None:
        rows = 0
        for held in waiting:
            seq = _seq(held, carried.after, carried.events)
            rows += _rows(held.turn.world)
            if seq is None or (carried.turns and rows > ROWS_AT_ONCE):
                break
            carried.recording = self._write(db, epoch, held.turn, seq, carried.recording)
            carried.turns.append(held)

    def committed(self, carried: Carried) -> None:
        """A transaction is on disk: its turns are written, and those held know where they belong."""
        self._recording = carried.recording
        if carried.turns:
            self._sound = True
        with self._lock:
            written = {id(h) for h in carried.turns}
            self._held = [h for h in self._held if id(h) not in written]
            self._rows = sum(_rows(h.turn.world) for h in self._held)
            if carried.events:
                for held in self._held:
                    held.seq = _seq(held, carried.after, carried.events)

    def _write(self, db: Database, epoch: int, turn: TurnRecord, seq: int, recording: int | None) -> int:
        at, size = turn.world.now, 0
        if turn.begins or recording is None:
            self._packer.forget()
            wanted, memory = encode_pool(turn.pool), zlib.compress(encode_memory(turn.memory), 1)
            db.execute(
                "INSERT INTO recordings (pool, epoch, seq, at, until, turns, bytes, version, wanted, memory) "
                "VALUES (?,?,?,?,?,0,0,?,?,?)",
                (turn.pool.name, epoch, seq, at, at, __version__, wanted, memory),
            )
            recording = int(db.execute("SELECT MAX(id) FROM recordings").fetchone()[0])
            size = len(wanted) + len(memory)
        body, parts = self._packer.pack(turn.world, turn.plan)
        db.execute(
            "INSERT INTO turns (recording, seq, at, body) VALUES (?,?,?,?)", (recording, seq, at, body)
        )
        db.executemany(
            "INSERT INTO parts VALUES (?,?,?) ON CONFLICT DO NOTHING",
            ((recording, *p) for p in parts.items()),
        )
        size += len(body) + sum(map(len, parts.values()))
        db.execute(
            "UPDATE recordings SET until=?, turns=turns+1, bytes=bytes+? WHERE id=?", (at, size, recording)
        )
        return recording


def _seq(held: _Held, after: int, events: int) -> int | None:
    """The number of the last event that a held turn had taken in, if it is on disk after this batch."""
    if held.seq is not None:
        return held.seq
    return after + held.turn.behind if held.turn.behind <= events else None


def _rows(world: World) -> int:
    return max(1, len(world.instances))


def prune(db: Database, pool: str, *, keep_for: float, keep_bytes: int) -> int | None:
    """Let go of recordings that are older than `keep_for` seconds or beyond `keep_bytes`; the newest stays.

    Returns the number of the event from which on all events are needed to replay what is left, None when
    there is nothing to replay.
    """
    rows = db.execute(
        "SELECT id, until, bytes FROM recordings WHERE pool=? ORDER BY id DESC", (pool,)
    ).fetchall()
    newest, total, gone = (rows[0][1] if rows else 0.0), 0, []
    for place, (recording, until, size) in enumerate(rows):
        total += size
        if place and (newest - until > keep_for or total > keep_bytes):
            gone.append(recording)
    for recording in gone[::-1][:PRUNED_AT_ONCE]:
        for table, key in (("turns", "recording"), ("parts", "recording"), ("recordings", "id")):
            db.execute(f"DELETE FROM {table} WHERE {key}=?", (recording,))  # noqa: S608
    first: int | None = db.execute("SELECT MIN(seq) FROM recordings WHERE pool=?", (pool,)).fetchone()[0]
    return first


# -- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recording as the file has it. `seq` is the last event in its memory; `bytes` what its turns take.

    It is the work of one daemon: only events of its `epoch` belong to it.
    """

    id: int
    pool: str
    epoch: int
    seq: int
    at: float
    until: float
    turns: int
    bytes: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTurn:
    """One recorded turn as the file has it."""

    number: int
    seq: int
    at: float
    body: bytes


def recordings(db: Database) -> list[Recording]:
    """All recordings, oldest first."""
    names = ("id", "pool", "epoch", "seq", "at", "until", "turns", "bytes", "version")
    rows = db.execute(f"SELECT {', '.join(names)} FROM recordings ORDER BY id")  # noqa: S608
    return [Recording(**dict(zip(names, row, strict=True))) for row in rows]


def beginning(db: Database, recording: int) -> tuple[bytes, bytes]:
    """The pool and the memory that a recording begins with. Raises LookupError when it was deleted."""
    row = db.execute("SELECT wanted, memory FROM recordings WHERE id=?", (recording,)).fetchone()
    if row is None:
        raise LookupError(f"recording {recording} was deleted meanwhile")
    return row[0], zlib.decompress(row[1])


def turns(db: Database, recording: int) -> Iterator[StoredTurn]:
    """The turns of a recording in their order."""
    query = "SELECT id, seq, at, body FROM turns WHERE recording=? ORDER BY id"
    for number, seq, at, body in db.execute(query, (recording,)):
        yield StoredTurn(number=number, seq=seq, at=at, body=body)


def parts(db: Database, recording: int) -> dict[bytes, bytes]:
    """All parts of a recording by their digests."""
    return dict(db.execute("SELECT digest, body FROM parts WHERE recording=?", (recording,)).fetchall())
