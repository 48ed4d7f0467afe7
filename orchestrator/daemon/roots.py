"""Root tasks: work that runs for as long as the daemon, or one pool of it, does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cloud.logger import structlog

log = structlog.get_logger("daemon")


class Roots:
    """Root tasks that start one by one and stop together.

    `on_end` hears of one that failed, with what was raised, and of one that ended though none should. What
    they log names the `pool`, where they are of one.
    """

    def __init__(self, on_end: Callable[[str, Exception | None], None], *, pool: str = "") -> None:
        self._on_end = on_end
        self._pool = {"pool": pool} if pool else {}
        self._tasks: list[asyncio.Task[None]] = []
        self._works: list[Coroutine[Any, Any, None]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool = False) -> None:
        """Run the work in a task of its own; `may_end`: that it ends is no failure."""
        title = " of ".join((name, *self._pool.values()))
        self._works.append(work)
        self._tasks.append(asyncio.create_task(self._guard(name, work, may_end=may_end), name=title))

    async def stop(self) -> None:
        """Stop all of them. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for work in self._works:
            work.close()  # one whose task never got to run
        self._works.clear()

    async def _guard(self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool) -> None:
        structlog.contextvars.bind_contextvars(**self._pool)
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("task.failed", task=name, **self._pool)
            self._on_end(f"{name} failed: {type(error).__name__}: {error}", error)
        else:
            if not may_end:
                self._on_end(f"{name} ended", None)
