"""A file that follows what a balancer has acknowledged: written behind the acknowledgement, newest first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from cloud.errors import Denied

Content = TypeVar("Content")
RunBlocking = Callable[[Callable[[], None]], Awaitable[None]]


class KeptFile(Generic[Content]):
    """Writes the newest content by a task of its own; what was overtaken meanwhile is skipped.

    `write` blocks on the disk and raises OSError or Denied; `run_blocking` runs it. A failed write is
    reported to `on_error` with a sentence and tried again with the next content, also an equal one.
    """

    def __init__(
        self,
        write: Callable[[Content], None],
        *,
        run_blocking: RunBlocking,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._write, self._run_blocking, self._on_error = write, run_blocking, on_error
        self._unwritten: list[Content] = []  # the newest, if any
        self._written: list[Content] = []
        self._writer: asyncio.Task[None] | None = None

    def keep(self, content: Content) -> None:
        """Have the file hold this soon."""
        if not self._unwritten and self._written == [content]:
            return
        self._unwritten = [content]
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._run(), name="kept-file")

    async def flush(self) -> None:
        """Wait until no write is under way."""
        while self._writer is not None and not self._writer.done():
            await asyncio.shield(self._writer)

    async def _run(self) -> None:
        while self._unwritten:
            (content,) = newest = self._unwritten
            try:
                await self._run_blocking(partial(self._write, content))
            except (OSError, Denied) as error:
                self._written = []
                if self._unwritten is newest:
                    if self._on_error is not None:
                        self._on_error(str(error))
                    self._unwritten = []
                continue
            self._written = newest
            if self._unwritten is newest:
                self._unwritten = []
