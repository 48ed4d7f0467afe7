"""What a journal is kept in: one connection with a thread of its own, whatever the database.

A `Backend` is one database (a SQLite file, a PostgreSQL server); a `Lane` is one connection to it and the
thread that owns it. Statements are written once, in what both databases understand, with `?` for values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

R = TypeVar("R")
C = TypeVar("C", bound="Database")

LEASE: Final = (
    "CREATE TABLE IF NOT EXISTS lease ("
    "one INTEGER PRIMARY KEY CHECK (one = 1), seat TEXT NOT NULL, who TEXT NOT NULL, pool TEXT NOT NULL, "
    "epoch INTEGER NOT NULL, beat INTEGER NOT NULL, seconds REAL NOT NULL)",
    "INSERT INTO lease VALUES (1, '', '', '', 0, 0, 0) ON CONFLICT DO NOTHING",
)
"""The table of the lease in a database that two control hosts share, one row. `seat` is empty while
nobody holds the lease; `beat` counts renewals."""


class StoreUnavailable(Exception):
    """The journal cannot be read or written now. The message says why and what to do."""


class Superseded(StoreUnavailable):
    """Another daemon writes this journal now. Whoever hears this ends: it lost the lease as well."""


class Rows(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, None after the last."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """A connection. `DatabaseError` is what its statements raise."""

    @property
    def DatabaseError(self) -> type[Exception]:  # noqa: N802 - the name that PEP 249 gives it
        """The class of its errors."""
        ...

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Rows:
        """Run one statement."""
        ...

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> object:
        """Run one statement for each row of values, in their order."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


@dataclass(slots=True)
class Fence:
    """The epoch under which a lane writes, and how many writes of the journal it knows of."""

    epoch: int
    writes: int | None = None


class Backend(Protocol[C]):
    """One database. `where` names it in messages, `errors` is what it raises.

    `patience` is for how many seconds a caller waits for it, None for as long as it takes.
    """

    where: str
    errors: type[Exception]

    @property
    def patience(self) -> float | None:
        """See above."""
        ...

    def connect(self) -> C:
        """A new connection. Raises `errors`."""
        ...

    def transaction(self, db: C, fence: Fence | None) -> AbstractContextManager[object]:
        """One transaction, all or nothing; with a fence it raises Superseded when another epoch began."""
        ...

    def last_event(self, db: C) -> int:
        """The number of the newest event that was ever written."""
        ...

    def unavailable(self, error: Exception) -> StoreUnavailable:
        """An error in words."""
        ...

    def broken(self, db: C) -> bool:
        """True when nothing more can be asked of this connection."""
        ...

    def evict(self, db: C) -> None:
        """End what others have held under way for longer than anybody waits. Called by who takes over."""
        ...

    def abort(self, db: C) -> None:
        """Have what is under way on this connection fail now. Called from another thread."""
        ...


class Lane(Generic[C]):
    """One connection and the thread that owns it. `inline` runs everything in place instead. `reads`: nothing
    that it runs changes anything, so that what met a connection that broke since the last time is run again.

    A database that does not answer in time breaks the connection. From then on every call is refused at once
    while a new connection is tried beside them: one turn of the loop waits for a dead database, no later one.
    """

    def __init__(self, backend: Backend[C], *, inline: bool, reads: bool = False) -> None:
        self._backend, self._reads = backend, reads
        self.fence: Fence | None = None  # under which this lane writes, once it took an epoch
        self._db: C | None = None
        self._pool = None if inline else ThreadPoolExecutor(1, thread_name_prefix="store")
        self._closed = False
        self._jobs: set[Future[Any]] = set()
        self._gave_up = False
        self._broken = ""
        self._mending: asyncio.Future[None] | None = None

    async def run(
        self,
        work: Callable[[C], R],
        *,
        committed: Callable[[R], None] | None = None,
        longer: float = 1.0,
    ) -> R:
        """Run `work` in one transaction, then `committed` in the same thread. Raises StoreUnavailable.

        `longer`: how many times as long as usual the database may take, for much work that nobody waits for.
        """
        if self._closed:
            raise StoreUnavailable(f"{self._backend.where}: the journal is closed")
        if self._pool is None:
            return self._do(work, committed)
        if self._broken:
            if self._mending is None or self._mending.done():
                self._mending = self._begin(self._pool, self._mend)
            raise StoreUnavailable(self._broken)
        return await self._begin(self._pool, partial(self._do, work, committed), longer)

    def _begin(
        self, pool: ThreadPoolExecutor, job: Callable[[], R], longer: float = 1.0
    ) -> asyncio.Future[R]:
        """Have the thread do a job, and break the connection when that takes too long."""
        work = pool.submit(job)
        self._jobs = {j for j in self._jobs if not j.done()} | {work}
        if self._backend.patience is not None:
            asyncio.get_running_loop().call_later(self._backend.patience * longer, self._give_up, work)
        return asyncio.wrap_future(work)

    def _give_up(self, job: Future[Any]) -> None:
        db = self._db
        if not job.done() and db is not None:
            self._gave_up = True
            self._backend.abort(db)

    # -- in the thread -----------------------------------------------------------------------------

    def _do(self, work: Callable[[C], R], committed: Callable[[R], None] | None) -> R:
        kept = self._db
        try:
            if self._db is None:
                self._db = self._backend.connect()
            with self._backend.transaction(self._db, self.fence):
                result = work(self._db)
        except self._backend.errors as error:
            if self._reads and kept is not None and not self._gave_up and self._backend.broken(kept):
                self._shut()
                return self._do(work, committed)
            raise self._failed(error) from error
        if committed is not None:
            committed(result)
        return result

    def _failed(self, error: Exception) -> StoreUnavailable:
        """The error in words; a connection that is of no more use is closed."""
        said = self._backend.unavailable(error)
        if self._gave_up:
            said = StoreUnavailable(f"{self._backend.where}: did not answer in {self._backend.patience:g} s")
        if self._gave_up or self._db is None or self._backend.broken(self._db):
            self._gave_up = False
            if self._backend.patience is not None:
                self._broken = str(said)
                self._shut()
        return said

    def _mend(self) -> None:
        """Try a new connection, to the end of a whole transaction."""
        try:
            self._do(lambda _: None, None)
        except Superseded:
            pass  # the next call finds the same and says so
        except StoreUnavailable as error:
            self._broken = str(error)
            return
        self._broken = ""

    def close(self) -> None:
        """Finish what was begun, as far as it can be, and close the connection. Idempotent."""
        self._closed = True
        if self._pool is not None:
            for job in wait(self._jobs, timeout=self._backend.patience).not_done:
                self._give_up(job)
            self._pool.submit(self._shut)
            self._pool.shutdown(wait=True)
            self._pool = None
        else:
            self._shut()

    def _shut(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
