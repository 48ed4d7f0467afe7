"""The ids of requests: every answer carries one, whatever became of its request."""

from __future__ import annotations

import random
from collections.abc import Mapping

from orchestrator.gateway.replies import REQUEST_ID

_LONGEST = 128


class RequestIds:
    """Gives requests their ids."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def new(self) -> str:
        """One of our own: 24 hexadecimal digits."""
        return f"{self._rng.getrandbits(96):024x}"

    def of(self, headers: Mapping[str, str]) -> str:
        """The client's own id when it is a sane one, else a new one."""
        given = headers.get(REQUEST_ID, "")
        if 0 < len(given) <= _LONGEST and given.isascii() and given.isprintable():
            return given
        return self.new()
