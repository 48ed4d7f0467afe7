"""Blocking libraries from an event loop: a few threads of their own that never hold up the process's end.

Not `concurrent.futures`: its threads are joined when the interpreter ends, so a long poll of 20 seconds
would keep a stopped daemon alive for as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class WorkerThreads:
    """At most `limit` daemon threads, started as they are needed, that do blocking work in order."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0  # jobs that are queued or under way
        self._closed = False

    async def run(self, work: Callable[[], Value]) -> Value:
        """Do the work in a thread; its exception is raised here.

        Cancelling stops the waiting, not the work: that goes on to its own time-out, and its result is
        dropped. Work that no thread has begun by then is not begun. Raises RuntimeError after `close`.
        """
        if self._closed:
            raise RuntimeError(f"the threads {self._name} are closed")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Value] = loop.create_future()
        with self._lock:
            self._busy += 1
            if self._threads < min(self._busy, self._limit):
                self._threads += 1
                title = f"{self._name}-{self._threads}"
                threading.Thread(target=self._serve, name=title, daemon=True).start()
        self._jobs.put((loop, result, work))
        return await result

    def close(self) -> None:
        """End the threads as they become free. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._threads):
                    self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, result, work = job
            value, error = None, None
            if not result.cancelled():
                try:
                    value = work()
                except BaseException as raised:  # even SystemExit belongs to whoever asked
                    error = raised
            with self._lock:
                self._busy -= 1  # before anybody hears of the result and asks for more
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_settle, result, value, error)


def _settle(result: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if result.cancelled():
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(value)
