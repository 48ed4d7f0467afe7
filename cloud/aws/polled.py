"""What the sources of notices have in common that ask EC2 every so often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Final

from cloud.ports import Clock
from policies.model import Notice

MOST_PAGES: Final = 500
"""Pages of one look; a listing that goes on longer goes round in circles."""

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


class PolledNotices(ABC):
    """A `Notices` source that looks every `interval` seconds. A notice that is yielded is kept in
    `_unacknowledged` until it is acknowledged."""

    def __init__(self, clock: Clock, *, interval: float, name: str) -> None:
        self.name = name
        self.last_error = ""
        self.looks = 0
        self.failures = 0
        self._clock, self._interval = clock, interval
        self._unacknowledged: dict[str, Notice] = {}
        self._looked_at: float | None = None

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield each notice when its status first shows, for ever; first what was not acknowledged.

        A look that fails is repeated, with growing pauses; the pages before the failure count.
        """
        for notice in list(self._unacknowledged.values()):
            yield notice
        pause = _FIRST_PAUSE
        while True:
            error = ""
            try:
                self.looks += 1
                async for notice in self._look():
                    yield notice
                self._looked_at = self._clock.now()
            except Exception as failure:  # whatever it is, the next look may work
                error = f"{type(failure).__name__}: {failure}"
            self._note(error)
            await self._clock.sleep(max(pause, self._interval) if error else self._interval)
            pause = min(_LONGEST_PAUSE, pause * 2) if error else _FIRST_PAUSE

    async def acknowledge(self, notice: Notice) -> None:
        """The notice is not yielded again. Idempotent."""
        self._unacknowledged.pop(notice.id, None)

    def age(self) -> float:
        """Seconds since the last complete look; infinite before the first."""
        return float("inf") if self._looked_at is None else max(0.0, self._clock.now() - self._looked_at)

    async def close(self) -> None:  # noqa: B027 - a poll holds nothing
        """Nothing to release: the calls belong to the caller."""

    @abstractmethod
    def _look(self) -> AsyncIterator[Notice]:
        """Look once, and yield what is new. Raises CloudError."""

    @abstractmethod
    def _say_failed(self, error: str) -> None:
        """Log that looks fail now."""

    @abstractmethod
    def _say_recovered(self) -> None:
        """Log that they work again."""

    def _note(self, error: str) -> None:
        """Remember how the last look went; log when that changes."""
        self.failures += 1 if error else 0
        if error and not self.last_error:
            self._say_failed(error)
        elif self.last_error and not error:
            self._say_recovered()
        self.last_error = error
