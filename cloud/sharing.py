"""What several adapters use together, such as threads or a process: it ends when the last of them lets go."""

from __future__ import annotations

from typing import Protocol


class Shared(Protocol):
    """What is used together."""

    async def release(self) -> None:
        """One share is given up; the last one ends it."""
        ...


class Share:
    """One adapter's part in it."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._held = True

    async def close(self) -> None:
        """Give the share up. Idempotent."""
        if self._held:
            self._held = False
            await self._shared.release()
