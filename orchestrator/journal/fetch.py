"""A journal on a PostgreSQL server as a file, to be read and replayed like any other."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from orchestrator.journal.database import StoreUnavailable
from orchestrator.journal.file import JournalError
from orchestrator.journal.postgres import Connection, PostgresDatabase
from orchestrator.journal.sqlite import SqliteFile

_TABLES: Final = (
    "meta",
    "events",
    "intents",
    "snapshots",
    "ledger",
    "totals",
    "spend_hours",
    "baseline_hours",
    "recordings",
    "turns",
    "parts",
)
_ROWS: Final = 2_000


def fetch(url: str, to: Path) -> None:
    """Copy the journal at `url`, as of one instant, into a new file. Raises JournalError."""
    try:
        database = PostgresDatabase(url)
        try:
            with closing(database.connect()) as db, db.raw.transaction():
                # However long the copy takes: it holds up nobody.
                db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                db.execute("SET LOCAL statement_timeout = 0")
                _copy(db, to)
        except database.errors as error:
            raise database.unavailable(error) from error
    except StoreUnavailable as error:
        raise JournalError(str(error)) from error
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"{to}: cannot be written ({error}); give another place") from error


def _copy(db: Connection, to: Path) -> None:
    SqliteFile(to).prepare()
    with closing(sqlite3.connect(to)) as copy, copy:
        for table in _TABLES:
            columns = [row[1] for row in copy.execute(f"PRAGMA table_info({table})")]
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            copy.execute(f"DELETE FROM {table}")  # noqa: S608 - what a new journal begins with
            with db.raw.cursor(name="copy") as cursor:
                cursor.execute(f"SELECT {names} FROM {table}".encode())  # noqa: S608
                while rows := cursor.fetchmany(_ROWS):
                    copy.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)  # noqa: S608
