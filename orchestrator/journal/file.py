"""A journal opened to be read: a copy on a desk, or the live file of a running daemon.

Nothing is ever written to it. Each read is one short transaction, so that a running daemon is not held up and
its write-ahead log can be taken in between two reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from orchestrator.journal import hours, turn_log
from orchestrator.journal.sqlite import legible, readable
from orchestrator.journal.store import GATEWAY, SCHEMA_VERSION, StoredEvent
from orchestrator.journal.turn_log import Recording, StoredTurn
from policies.economics import BaselineHour, SpendHour

R = TypeVar("R")

NAME: Final = "journal.db"
"""Name of the journal in a state directory."""

_BUSY_WAIT: Final = 5.0
_PAGE: Final = 10_000


class JournalError(Exception):
    """The file cannot be read. The message says which, why and what to do."""


def journal_at(path: Path) -> tuple[Path, bool]:
    """The journal at a path, or in a state directory, and whether there is one.

    Raises JournalError where this user may not even look.
    """
    try:
        if path.is_dir():
            path = path / NAME
        return path, path.exists()
    except PermissionError as error:
        raise JournalError(f"{path}: this user may not read it; ask as its owner, or as root") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTurns:
    """What is needed to replay one recording: its beginning, its turns, and the events between them."""

    wanted: bytes
    memory: bytes
    turns: tuple[StoredTurn, ...]
    parts: dict[bytes, bytes]
    events: tuple[StoredEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a journal holds. Times are None where there is nothing."""

    schema: int
    size: int
    pools: tuple[str, ...]
    epoch: int
    events: int
    first_event: int
    last_event: int
    first_at: float | None
    last_at: float | None
    open_intents: int
    recordings: tuple[Recording, ...]


class JournalFile:
    """A journal to be read. A context manager; `open` makes one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = _found(path)
        self._db = _connect(path, self._found)
        try:
            self.schema = _schema(path, self._db)
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def open(cls, path: Path) -> JournalFile:
        """Open the journal at `path`, or the one in the state directory `path`. Raises JournalError.

        Without a write-ahead log beside it no daemon has the file open, and it is read as it stands: nothing
        is put beside it.
        """
        path, there = journal_at(path)
        if not there:
            raise JournalError(f"{path}: no such file; give the path of a journal, or --config FILE")
        return cls(path)

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def contents(self) -> Contents:
        """What the file holds. Raises JournalError."""
        return self._read(self._contents)

    def faults(self) -> list[str]:
        """What SQLite's own check finds, at most a few; reads the whole file. Raises JournalError."""
        rows = self._read(lambda db: db.execute("PRAGMA integrity_check(3)").fetchall())
        return [text for (text,) in rows if text != "ok"]

    def recordings(self) -> list[Recording]:
        """All recordings, oldest first; none in a journal of a version that recorded no turns."""
        return self._read(turn_log.recordings) if self.schema >= 2 else []

    def marks(self, recording: Recording) -> list[tuple[int, int, float]]:
        """Number, last event and time of each turn of a recording."""
        query = "SELECT id, seq, at FROM turns WHERE recording=? ORDER BY id"
        return self._read(lambda db: db.execute(query, (recording.id,)).fetchall())

    def recorded(self, recording: Recording) -> RecordedTurns:
        """Everything that is needed to replay a recording. Raises JournalError."""

        def read(db: sqlite3.Connection) -> RecordedTurns:
            wanted, memory = turn_log.beginning(db, recording.id)
            turns = tuple(turn_log.turns(db, recording.id))
            query = (
                "SELECT seq, at, pool, kind, node, body FROM events "
                "WHERE pool=? AND epoch=? AND seq>? AND seq<=? ORDER BY seq"
            )
            last = turns[-1].seq if turns else recording.seq
            which = (recording.pool, recording.epoch, recording.seq, last)
            rows = db.execute(query, which).fetchall()
            return RecordedTurns(
                wanted=wanted,
                memory=memory,
                turns=turns,
                parts=turn_log.parts(db, recording.id),
                events=tuple(map(_event, rows)),
            )

        return self._read(read)

    def events(self) -> Iterator[StoredEvent]:
        """All events in their order, read in pages. Raises JournalError."""
        after = 0
        query = "SELECT seq, at, pool, kind, node, body FROM events WHERE seq>? ORDER BY seq LIMIT ?"
        while rows := self._read(lambda db, a=after: db.execute(query, (a, _PAGE)).fetchall()):  # type: ignore[misc]
            yield from map(_event, rows)
            after = rows[-1][0]

    def copy(self, to: Path) -> None:
        """Copy the whole journal as of now into one new file that needs nothing beside it.

        Raises JournalError, also when there is a file already.
        """
        self._read(lambda _: None)  # find a daemon that was started meanwhile
        try:
            with to.open("xb"):
                pass
            with closing(sqlite3.connect(to)) as copy:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
        except FileExistsError as error:
            raise JournalError(f"{to}: there is a file already; give another name") from error
        except OSError as error:
            raise JournalError(f"{to}: cannot be written ({error.strerror}); give another place") from error
        except sqlite3.Error as error:
            to.unlink(missing_ok=True)
            raise JournalError(f"{self.path}: cannot be copied to {to} ({error})") from error

    def _read(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Run `work` in one transaction."""
        if self._found and _found(self.path) != self._found:  # a daemon was started meanwhile
            self._db.close()
            self._found = _found(self.path)
            self._db = _connect(self.path, self._found)
        try:
            self._db.execute("BEGIN")
            try:
                with legible():
                    return work(self._db)
            finally:
                self._db.execute("COMMIT")
        except LookupError as error:
            raise JournalError(f"{self.path}: {error}; try again") from error
        except sqlite3.Error as error:
            raise _unreadable(self.path, error) from error

    def spend_hours(self, since: int, until: int) -> list[SpendHour]:
        """What nodes cost in these hours; nothing in a journal of a version that kept no hours."""
        return self._read(partial(hours.spend, since=since, until=until)) if self.schema >= 3 else []

    def baseline_hours(self, since: int, until: int) -> list[BaselineHour]:
        """What the wanted units would have cost on-demand in these hours."""
        return self._read(partial(hours.baseline, since=since, until=until)) if self.schema >= 3 else []

    def hours_since(self) -> dict[str, float]:
        """Since when the hours are known, of the pools whose account is older than that."""
        return self._read(hours.since if self.schema >= 3 else hours.charged)

    def _contents(self, db: sqlite3.Connection) -> Contents:
        count, first, last, first_at, last_at = db.execute(
            "SELECT COUNT(*), COALESCE(MIN(seq), 0), COALESCE(MAX(seq), 0), MIN(at), MAX(at) FROM events"
        ).fetchone()
        epoch = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
        pools = db.execute("SELECT DISTINCT pool FROM events ORDER BY pool").fetchall()
        intents = db.execute("SELECT COUNT(*) FROM intents WHERE outcome IS NULL").fetchone()[0]
        recorded = tuple(turn_log.recordings(db)) if self.schema >= 2 else ()
        return Contents(
            schema=self.schema,
            size=self.path.stat().st_size,
            pools=tuple(pool for (pool,) in pools if pool != GATEWAY),
            epoch=int(epoch[0]) if epoch is not None else 0,
            events=count,
            first_event=first,
            last_event=last,
            first_at=first_at,
            last_at=last_at,
            open_intents=intents,
            recordings=recorded,
        )


def _found(path: Path) -> tuple[int, ...]:
    """What tells that the file stays as it is; empty while a process has it open to write."""
    log = path.with_name(path.name + "-wal")
    try:
        if log.exists() and log.stat().st_size:
            return ()
        stat = path.stat()
    except OSError as error:
        raise JournalError(f"{path}: cannot be read ({error.strerror}); is it being moved?") from error
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _connect(path: Path, found: tuple[int, ...]) -> sqlite3.Connection:
    """A connection that cannot write; to a file that nobody has open it puts nothing beside it."""
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if found else ''}"
    try:
        db = sqlite3.connect(uri, uri=True, timeout=_BUSY_WAIT, isolation_level=None)
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    db.text_factory = readable
    return db


def _event(row: tuple[int, float, str, str, str | None, bytes]) -> StoredEvent:
    return StoredEvent(seq=row[0], at=row[1], pool=row[2], kind=row[3], node=row[4], body=row[5])


def _schema(path: Path, db: sqlite3.Connection) -> int:
    """The version of the file. Raises JournalError when it is no journal or of a newer version."""
    try:
        with legible():
            known = {n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if not {"meta", "events"} <= known:
            raise JournalError(f"{path}: is not a journal; a daemon's is {NAME} in its daemon.state_dir")
        row = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
        version = int(row[0]) if row is not None else 0
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise JournalError(f"{path}: is corrupt: its schema version is {row[0]!r}") from error
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}); "
            "read it with that version"
        )
    return version


def _unreadable(path: Path, error: sqlite3.Error) -> JournalError:
    name = getattr(error, "sqlite_errorname", "") or ""
    known = {
        "SQLITE_NOTADB": f"is not a journal; a daemon's is {NAME} in its daemon.state_dir",
        "SQLITE_CORRUPT": f"is corrupt ({error}); make the copy with `orchestrator journal copy`",
        "SQLITE_CANTOPEN": "cannot be opened; check its mode, and that its directory may be written "
        "if a -wal file lies beside it",
        "SQLITE_BUSY": "is held by another process; try again",
    }
    text = next((text for key, text in known.items() if name.startswith(key)), f"cannot be read ({error})")
    return JournalError(f"{path}: {text}")
