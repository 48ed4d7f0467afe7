"""A limit to what SkyPilot waits for without one: it fetches catalogues, and asks some clouds, with none.

A server that takes a connection and says nothing would keep a thread for ever, and with it a lock that every
launch needs.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

SECONDS: Final = (10.0, 60.0)
"""To connect, and between two parts of an answer."""


def limit_requests(seconds: tuple[float, float] = SECONDS) -> None:
    """Give every request of the library `requests` that has no limit this one."""
    session: Any = importlib.import_module("requests").Session
    send = session.send

    def limited(self: Any, request: Any, **given: Any) -> Any:
        if given.get("timeout") is None:
            given["timeout"] = seconds
        return send(self, request, **given)

    session.send = limited
