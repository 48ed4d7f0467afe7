"""The trace of a simulated run: every line hashed, the last ones kept for a report."""

from __future__ import annotations

import hashlib
from collections import Counter, deque

from cloud.ports import Clock


class Trace:
    """A log of what happened, as one digest. The same digest means the same run."""

    def __init__(self, clock: Clock, *, kept: int = 400) -> None:
        self._clock = clock
        self._hash = hashlib.sha256()
        self._began = clock.now()
        self.lines = 0
        self.counts: Counter[str] = Counter()
        self.tail: deque[str] = deque(maxlen=kept)

    def add(self, *words: object) -> None:
        """Add one line; its time is seconds since the run began.

        `counts` says how many lines began with the same word ("fault": with the same two).
        """
        line = f"{self._clock.now() - self._began:.6f} {' '.join(map(str, words))}"
        self._hash.update(line.encode() + b"\n")
        self.lines += 1
        what = words[0]
        if isinstance(what, str):
            self.counts[what if what != "fault" else f"{what} {words[1]}"] += 1
        self.tail.append(line)

    @property
    def digest(self) -> str:
        """The hash of all lines so far."""
        return self._hash.hexdigest()
