"""The usage file from an event loop: sums are kept in memory and written once a second, in one transaction.

A disk that hangs or is full holds up no request: what was counted stays in memory, by the same names as in
the file, so that it grows with the hours alone; from `MOST_ROWS` on it no longer does, and all that comes is
counted to the hour in which that was. A kill takes the last second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.gateway.accounts.usage_file import Names, Sums, Unusable, UsageFile

log = structlog.get_logger("gateway")

MOST_ROWS = 20_000
"""Rows that wait for the file before the hours are no longer told apart."""

_BEAT = 1.0  # s from one writing to the next
_FROZEN = 5.0  # s after which a file that does not answer is in trouble
_LAST = 3.0  # s that the end waits for the file
_HOUR = 3600.0


class UsageBook:
    """Adds up for one process. Make it inside the running event loop; `start` has it write.

    Without a `path` nothing is kept. `trouble` says why the file could not be written the last time, empty
    when it could.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._file = None if path is None else UsageFile(path)
        self._clock = clock
        self._threads = WorkerThreads("usage", 1)
        self._rows: dict[Names, Sums] = {}
        self._under_way: dict[Names, Sums] = {}  # handed to the thread, which reads a list of them
        self._late_hour: int | None = None  # all that comes is counted to this one
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._begun_at = 0.0  # when the writing that is under way was begun
        self._why = ""

    @property
    def trouble(self) -> str:
        """Why what is counted is not in the file."""
        return self._silence() if self._frozen else self._why

    @property
    def waiting(self) -> int:
        """Rows that are not in the file yet."""
        return len(self._rows) + len(self._under_way)

    def start(self) -> None:
        """Write from now on, once a second, and try the file at once: what is wrong with it is told."""
        if self._file is not None:
            self._begin(self._file)
            self._task = asyncio.create_task(self._beat(), name="usage")

    def add(self, key: str, route: str, backend: str, model: str, sums: Sums) -> None:
        """Count a request: `sums` in the order of `usage_file.SUMS`, to the present hour."""
        if self._file is None:
            return
        hour = int(self._clock.now() // _HOUR) if self._late_hour is None else self._late_hour
        if self._late_hour is None and self.waiting >= MOST_ROWS:
            self._late_hour = hour
        self._add((hour, key, route, backend, model), sums)

    async def close(self) -> None:
        """Write what waits, and let go of the file. What a file that does not answer is not given is told."""
        if self._task is None or self._file is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                await self.written()
                await self.written()  # what came while the one before was under way, or was not taken by it
                await self._threads.run(self._file.close)
        if self._rows or self._under_way:
            lost = sum(row[0] for rows in (self._rows, self._under_way) for row in rows.values())
            log.error("usage.lost", requests=int(lost), reason=self.trouble or self._silence())
        self._threads.close()

    async def written(self) -> None:
        """Write what waits; where a writing is under way, wait for that alone."""
        self._write_on()
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(_BEAT)
            self._write_on()
            self._look()

    def _look(self) -> None:
        if self._frozen:
            self._told(self._silence())

    def _write_on(self) -> None:
        """Begin to write what waits, unless a writing is under way."""
        if self._file is None or not self._rows or (self._writing is not None and not self._writing.done()):
            return
        self._begin(self._file)

    def _begin(self, file: UsageFile) -> None:
        self._under_way, self._rows = self._rows, {}
        self._begun_at = self._clock.steady()
        write = partial(file.add, list(self._under_way.items()), self._clock.now())
        self._writing = asyncio.create_task(self._write(write), name="usage-write")

    async def _write(self, write: Callable[[], None]) -> None:
        rows = self._under_way
        try:
            await self._threads.run(write)
        except Unusable as error:
            self._told(str(error))
            newer, self._rows = self._rows, rows
            for names, sums in newer.items():
                self._add(names, sums)
        else:
            if self._why:
                log.info("usage_file.recovered", rows=len(rows))
            self._why, self._late_hour = "", None
        self._under_way = {}

    def _add(self, names: Names, sums: Sums) -> None:
        row = self._rows.get(names)
        if row is None:
            self._rows[names] = sums
        else:
            for place, value in enumerate(sums):
                row[place] += value

    @property
    def _frozen(self) -> bool:
        """Whether a writing has been under way for too long."""
        writing = self._writing is not None and not self._writing.done()
        return writing and self._clock.steady() - self._begun_at > _FROZEN

    def _told(self, why: str) -> None:
        if not self._why:
            log.error("usage_file.write_failed", reason=why)
        self._why = why

    def _silence(self) -> str:
        return "" if self._file is None else f"the usage file {self._file.path} does not answer"
