"""Notices of the pool's own machines, from a source that hears of every machine of an account.

While a launch is under way nobody can say of a machine that no list shows whether it is the pool's. Its
notices wait for that, here and not in the journal: other people's machines would fill it. Nothing is lost
meanwhile: nothing can be done for a machine that is not known, and a notice that was not acknowledged comes
again after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

from cloud.errors import CloudError
from cloud.ports import Clock, Notices
from policies.model import Notice

PATIENCE: Final = 30.0
"""Seconds for which a notice waits at most; then it counts as the pool's."""
MOST_WAITING: Final = 1000
"""Notices that wait at once; one more counts as the pool's."""

_LOOK: Final = 0.25


class Whose(Protocol):
    """Whose a machine is, as far as that is known."""

    def __call__(self, node: str) -> bool:
        """Whether the machine may be the pool's: False of one that is certainly not."""
        ...

    def known(self, node: str) -> bool | None:
        """Whether it is the pool's; None while that is not known."""
        ...


class OwnNotices:
    """A `Notices` source that passes on what another one tells, but for machines that are not the pool's.

    What is left out is acknowledged to the source without being journalled, and counted in `strangers`.
    """

    def __init__(self, source: Notices, clock: Clock, *, whose: Whose) -> None:
        self.name = source.name
        self.strangers = 0
        self._source, self._clock, self._whose = source, clock, whose

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield the notices that may be the pool's, for ever."""
        ready: asyncio.Queue[Notice | Exception] = asyncio.Queue()
        sorting = asyncio.create_task(self._sort_all(ready))
        try:
            while True:
                told = await ready.get()
                if isinstance(told, Exception):
                    raise told
                yield told
        finally:
            sorting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sorting

    async def acknowledge(self, notice: Notice) -> None:
        """See the source."""
        await self._source.acknowledge(notice)

    def age(self) -> float:
        """See the source; what waits here is not acknowledged there."""
        return self._source.age()

    async def close(self) -> None:
        """Close the source."""
        await self._source.close()

    async def _sort_all(self, ready: asyncio.Queue[Notice | Exception]) -> None:
        waiting: set[asyncio.Task[None]] = set()
        try:
            async for notice in self._source.stream():
                if self._whose.known(notice.node) or len(waiting) >= MOST_WAITING:
                    ready.put_nowait(notice)
                    continue
                task = asyncio.create_task(self._sort(notice, ready))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
        except Exception as error:  # whatever it is, who reads must hear of it, and not wait for ever
            ready.put_nowait(error)
        finally:
            for task in waiting:
                task.cancel()

    async def _sort(self, notice: Notice, ready: asyncio.Queue[Notice | Exception]) -> None:
        """Pass a notice on, or leave it out, once it is known whose machine it is about."""
        until = self._clock.steady() + PATIENCE
        while (ours := self._whose.known(notice.node)) is None and self._clock.steady() < until:
            await self._clock.sleep(_LOOK)
        if ours is not False:
            ready.put_nowait(notice)
            return
        self.strangers += 1
        with contextlib.suppress(CloudError):  # then it comes again
            await self._source.acknowledge(notice)
