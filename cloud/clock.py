"""The only place that reads time and sleeps."""

from __future__ import annotations

import asyncio
import time

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """Wall-clock time that never runs backwards: read once, then carried on by the monotonic clock.

    A step of the system's clock (NTP, an operator) moves no deadline that is already counted.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + time.monotonic()

    def step(self) -> float:
        """Seconds by which the system's clock was set since this one began; 0 while it only ran on."""
        return time.time() - self.now()

    def steady(self) -> float:
        """Seconds since some instant, which also pass while the process or the host is suspended."""
        return time.clock_gettime(_STEADY)

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less yields once to the event loop."""
        await asyncio.sleep(max(0.0, seconds))
