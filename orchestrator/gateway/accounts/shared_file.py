"""A SQLite file that several processes share: opened when it is needed, and again where another lies there.

WAL: what was written survives a kill of the process. A power loss may take what was written last, unless the
file is `lasting` (synchronous=FULL), which waits for the disk at every transaction. A file that is damaged,
or of a later version, is refused and left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_WAIT = 2.0
"""Seconds to wait for another process that writes."""

Inode = tuple[int, int]
"""Which file it is: its device, and its number there."""

_NOWHERE: Inode = (-1, -1)
_FAULTS = (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError)


class Unusable(Exception):
    """The file could not be read or written; the message says why. As far as is known, nothing changed."""


class SharedFile:
    """One file. Blocking: for a thread of its own, one call at a time.

    `what` names it in messages. `schema` makes what is missing in it, in statements that change nothing where
    it is there, and `adapt` what takes more than these; `version` is the newest that is read.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        schema: str,
        version: int,
        lasting: bool = False,
        adapt: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path = path
        self._what = what
        self._schema = schema
        self._version = version
        self._synchronous = "FULL" if lasting else "NORMAL"
        self._adapt = adapt
        self._db: sqlite3.Connection | None = None
        self._opened: tuple[Inode, Inode] = (_NOWHERE, _NOWHERE)
        self._sound = _NOWHERE

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes in. Raises Unusable: then nothing of it holds."""
        with self.opened() as db, _transaction(db):
            yield db

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """The open file, to be read. Raises Unusable."""
        try:
            yield self._connection()
        except _FAULTS as error:
            self.close()
            raise Unusable(f"the {self._what} {self.path}: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _connection(self) -> sqlite3.Connection:
        """The open file: the one that is at its path, also when somebody put another there, or took away what
        was written last, which closing the file brings into it.
        """
        there = self._parts()
        if self._db is not None and self._opened != there:
            self.close()
        if self._db is None:
            self._db = db = sqlite3.connect(
                self.path, timeout=BUSY_WAIT, check_same_thread=False, isolation_level=None
            )
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={self._synchronous}")
            self._prepare(db)
            self._opened = self._parts()
        return self._db

    def _parts(self) -> tuple[Inode, Inode]:
        """Which files are at the path, and beside it for what was written last."""
        return _identity(self.path), _identity(_log_of(self.path))

    def _prepare(self, db: sqlite3.Connection) -> None:
        _check_version(db, self._version)
        if (which := _identity(self.path)) != self._sound:  # once: a long file takes its time
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"it is damaged: {found}")
            self._sound = which
        with _transaction(db):
            for statement in self._schema.split(";"):
                db.execute(statement)
            if self._adapt is not None:
                self._adapt(db)
            db.execute(f"PRAGMA user_version = {self._version}")


@contextmanager
def reading(path: Path, *, what: str, version: int) -> Iterator[sqlite3.Connection | None]:
    """A file that others may be writing, to be read. None where there is none, or none is written yet.

    Nothing is made beside it. Raises Unusable.
    """
    try:
        if _identity(path) == _NOWHERE:
            yield None
            return
        # Without its companions the file is nobody's now, and may lie where this user cannot make them.
        alone = _identity(_log_of(path)) == _NOWHERE
        how = "mode=ro&immutable=1" if alone else "mode=ro"
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=BUSY_WAIT)
        with contextlib.closing(db):
            yield db if _check_version(db, version) else None
    except _FAULTS as error:
        raise Unusable(f"the {what} {path}: {error}") from error


def _check_version(db: sqlite3.Connection, known: int) -> int:
    """The version of a file, 0 for one that nobody has written yet. Raises DatabaseError for a later one."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > known:
        raise sqlite3.DatabaseError(f"it was written by a later version ({version}; this one reads {known})")
    return version


def _log_of(path: Path) -> Path:
    """The write-ahead log of a file."""
    return path.with_name(f"{path.name}-wal")


def _identity(path: Path) -> Inode:
    """Which file is at the path. Raises OSError for another thing: opening a pipe waits for its other end."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return _NOWHERE
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    return found.st_dev, found.st_ino


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
