"""The journal in a SQLite file: the default, for one control host.

WAL with synchronous=FULL: what was written survives a kill -9 at any instant, and a power loss as far as the
disk keeps its word. A file that SQLite cannot read is set aside with its name and time and a new one begun:
the daemon then knows nothing and rebuilds its memory by adopting what the cloud shows.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from orchestrator.journal.database import Fence, StoreUnavailable, Superseded
from orchestrator.journal.store import Store, migrate

_BUSY_WAIT = 0.5
"""Seconds to wait for another process that holds the file: a turn of the loop, and so a notice, waits too."""

_SET_ASIDE = "is corrupt: restart the daemon, which sets it aside and starts from what the cloud shows"


@contextmanager
def legible() -> Iterator[None]:
    """Make an error of the driver of what is none: messages that name damaged bytes are no text to it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"the file is malformed: {error.object!r}") from error


class SqliteFile:
    """`orchestrator.journal.database.Backend` on a file."""

    patience = None  # a file answers, or fails after `_BUSY_WAIT`
    errors: type[Exception] = sqlite3.DatabaseError

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def connect(self) -> sqlite3.Connection:
        """See Backend."""
        db = sqlite3.connect(self.path, timeout=_BUSY_WAIT, check_same_thread=False)
        db.text_factory = readable  # an entry with damaged text is skipped like any other that says nothing
        with legible():
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
        return db

    @contextmanager
    def transaction(self, db: sqlite3.Connection, fence: Fence | None) -> Iterator[None]:
        """See Backend."""
        with legible(), db:
            if fence is not None:
                self.keep_out(db, fence.epoch)
            yield

    def keep_out(self, db: sqlite3.Connection, epoch: int) -> None:
        """Refuse to touch a journal that another daemon has taken over since: two would mix their memories.

        The lease cannot tell in time: this process may have been suspended between its look and its write.
        """
        db.execute("BEGIN IMMEDIATE")
        row = db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()
        held = int(row[0]) if row else 0
        if held != epoch:
            raise Superseded(f"{self.where}: another daemon took over (epoch {held}, ours is {epoch})")

    def last_event(self, db: sqlite3.Connection) -> int:
        """See Backend."""
        row = db.execute("SELECT seq FROM sqlite_sequence WHERE name='events'").fetchone()
        return 0 if row is None else int(row[0])

    def broken(self, db: sqlite3.Connection) -> bool:  # noqa: ARG002 - a file can be asked again
        """See Backend."""
        return False

    def evict(self, db: sqlite3.Connection) -> None:
        """See Backend. Who writes to a file is on this host, and its lock ends with its process."""

    def abort(self, db: sqlite3.Connection) -> None:
        """See Backend."""

    def unavailable(self, error: Exception) -> StoreUnavailable:
        """See Backend."""
        name = getattr(error, "sqlite_errorname", "")
        advice = {
            "SQLITE_FULL": "the disk is full: free some space",
            "SQLITE_READONLY": "the file is read-only: check its owner and mode",
            "SQLITE_CANTOPEN": "cannot be opened: check that the state directory exists and is writable",
            "SQLITE_BUSY": "another process holds the file: is a second daemon or a backup running?",
            "SQLITE_IOERR": "the disk fails or is full: check it",
            "SQLITE_CORRUPT": _SET_ASIDE,
            "SQLITE_NOTADB": _SET_ASIDE,
            "SQLITE_TOOBIG": _SET_ASIDE,
        }
        known = next((text for key, text in advice.items() if name.startswith(key)), f"{error}")
        return StoreUnavailable(f"{self.where}: {known}")

    def prepare(self) -> None:
        """Bring the tables to this version and check that the file can be read and written.

        Raises sqlite3.DatabaseError, and StoreUnavailable for a file of a newer version.
        """
        db = self.connect()
        try:
            with legible(), db:
                db.execute("BEGIN IMMEDIATE")
                _bring_up(db, self.where)
            with legible():  # the quick check would miss an index that nothing can be added to
                found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError("database disk image is malformed")
        finally:
            db.close()


class SqliteStore(Store):
    """A journal in the file `path`. Open it with `SqliteStore.open`."""

    def __init__(self, file: SqliteFile, *, inline: bool) -> None:
        super().__init__(file, inline=inline)
        self.path = file.path
        self.set_aside: Path | None = None

    @classmethod
    def open(cls, path: Path, *, now: float, inline: bool = False) -> Self:
        """Open or create the journal at `path`.

        A corrupt file is renamed to NAME.corrupt-TIME (see `set_aside`), never over an older one, and a new
        one is created. Raises
        StoreUnavailable when the directory is not writable, the disk is full, or the file was written by a
        newer version.
        """
        file, aside = SqliteFile(path), None
        try:
            file.prepare()
        except sqlite3.DatabaseError as error:
            if not _is_corruption(path, error):
                raise file.unavailable(error) from error
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
                file.prepare()
            except sqlite3.DatabaseError as again:
                raise file.unavailable(again) from again
        store = cls(file, inline=inline)
        store.set_aside = aside
        return store


def readable(data: bytes) -> str:
    """Text of an entry, however damaged."""
    return data.decode(errors="replace")


def _schema_version(db: sqlite3.Connection) -> int:
    """The version that wrote the file, 0 for a new one; read before anything is written to it."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE type='table' AND name='meta'").fetchone() is None:
        return 0
    row = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
    if row is None:
        return 0
    if not str(row[0]).isdecimal():
        raise sqlite3.DatabaseError(f"the schema version {row[0]!r} is malformed")
    return int(row[0])


def _bring_up(db: sqlite3.Connection, where: str) -> None:
    """Bring the tables to this version. Where a step was taken before, they do not name their version."""
    try:
        migrate(db, where, _schema_version(db))
    except sqlite3.OperationalError as error:
        if not any(text in str(error) for text in ("duplicate column name", "already exists")):
            raise
        raise sqlite3.DatabaseError(f"the schema version is malformed: {error}") from error


def _free_name(path: Path) -> Path:
    """The path itself, or with a number when something is there already."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def _is_corruption(path: Path, error: sqlite3.DatabaseError) -> bool:
    """True when the file is not what a daemon wrote.

    Also for one whose header says that it may not be written to, though it may, and for one with an entry of
    a length that no daemon writes.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY:
        return os.access(path, os.W_OK)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG):
        return True
    return any(text in str(error) for text in ("malformed", "unsupported file format"))
