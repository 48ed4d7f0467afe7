"""A clock that a test turns by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """`cloud.ports.Clock`: time passes when `at` is set, or with a sleep."""

    at: float = 1000.0

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.at

    def steady(self) -> float:
        """The same."""
        return self.at

    async def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.at += seconds
