"""The usage file: what every key used of every model, in sums of an hour.

A gateway and its heir write into the same rows, the daemon and the command line read. A file that cannot be
read or written is never set aside by itself: what was counted meanwhile waits in the memory of its writer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.gateway.accounts.shared_file import SharedFile, Unusable, reading
from policies.cost_rows import UsageHour

__all__ = ["KEPT_DAYS", "VERSION", "Names", "Sums", "Unusable", "UsageFile", "read_usage"]

VERSION = 1
"""Of the whole file, whoever's tables are in it."""

KEPT_DAYS = 400
"""Days whose sums stay in the file."""

_WHAT = "usage file"
_HOURS = 24

Names = tuple[int, str, str, str, str]
"""What tells rows apart: hour (`int(epoch seconds // 3600)`), key, route, backend, model."""

Sums = list[float]
"""What a row adds up, in the order of SUMS."""

NAMES = ("hour", "key", "route", "backend", "model")
COUNTS = ("requests", "failed", "estimated", "fresh", "cached", "written", "output")
TIMES = ("first_token_s", "seconds")
SUMS = (*COUNTS, *TIMES)

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL, key TEXT NOT NULL, route TEXT NOT NULL, backend TEXT NOT NULL, model TEXT NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL" for name in COUNTS)},
    {", ".join(f"{name} REAL NOT NULL" for name in TIMES)},
    PRIMARY KEY ({", ".join(NAMES)})
) WITHOUT ROWID
"""
_ADD = f"""
INSERT INTO usage ({", ".join((*NAMES, *SUMS))}) VALUES ({", ".join("?" * len((*NAMES, *SUMS)))})
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)}
"""  # noqa: S608 - our own names
_READ = f"""
SELECT {", ".join((*NAMES, *SUMS))} FROM usage WHERE hour >= ? AND hour < ? ORDER BY {", ".join(NAMES)}
"""  # noqa: S608 - the same

_FORGET = "DELETE FROM usage WHERE hour < ? AND hour < (SELECT min(hour) FROM usage) + ?"
"""Once a day, two days that are long over: a clock that is far ahead for a while must not empty the file."""

_THERE = "SELECT 1 FROM sqlite_master WHERE name = 'usage'"  # others have tables in the file too


class UsageFile:
    """The writing side. Blocking: for a thread of its own, one call at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SharedFile(path, what=_WHAT, schema=_SCHEMA, version=VERSION)
        self._day = 0

    def add(self, rows: Iterable[tuple[Names, Sums]], now: float) -> None:
        """Add to the sums of rows, all in one transaction. Raises Unusable: then none was added."""
        with self._file.writing() as db:
            day = int(now // 86_400)
            if day != self._day:
                db.execute(_FORGET, ((day - KEPT_DAYS) * _HOURS, 2 * _HOURS))
            db.executemany(_ADD, ((*names, *sums) for names, sums in rows))
        self._day = day

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read_usage(path: Path, since_hour: int, until_hour: int) -> list[UsageHour]:
    """The rows of the hours from `since_hour` on and before `until_hour`, in order.

    Nothing where there is no file. Others may be writing it. Raises Unusable.
    """
    with reading(path, what=_WHAT, version=VERSION) as db:
        there = db is not None and db.execute(_THERE).fetchone()
        rows = db.execute(_READ, (since_hour, until_hour)) if db is not None and there else ()
        return [UsageHour(**dict(zip((*NAMES, *SUMS), row, strict=True))) for row in rows]
