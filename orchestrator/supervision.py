"""What a process says to systemd: ready, alive, how it is, stopping; sd_notify(3) by hand.

Without NOTIFY_SOCKET in the environment, as in a terminal, everything here does nothing. A message that does
not get through is lost: the supervisor may be slow, the loop may not wait for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final

_FEEDS: Final = 4
"""Signs of life within the time after which the watchdog would strike."""


class Supervisor:
    """The way to the service manager that started this process, if one did.

    `watchdog` is the time in seconds within which it wants a sign of life, None when it wants none.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # opened once: a process that has run out of file descriptors must still be able to say that it works
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self.watchdog = _watchdog(environment) if address else None
        self._status = ""
        self._ready = False
        self._fed: float | None = None

    @property
    def pace(self) -> float | None:
        """The longest pause between two signs of life, seconds; None where none is wanted."""
        return None if self.watchdog is None else self.watchdog / _FEEDS

    def works(self, now: float, describe: Callable[[], str]) -> None:
        """A unit of work was completed: the first makes the service ready, each keeps the watchdog away.

        `describe` says how the service is, in one line.
        """
        if self._socket is None:
            return
        lines, status = [], describe()
        if not self._ready:
            self._ready = True
            lines.append("READY=1")
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={_one_line(status)}")
        pace = self.pace
        if pace is not None and (self._fed is None or not 0 <= now - self._fed < pace / 2):
            self._fed = now
            lines.append("WATCHDOG=1")
        self._send(lines)

    def hands_over(self, pid: int) -> None:
        """Another process is the service from now on."""
        self._send([f"MAINPID={pid}"])

    def stops(self, status: str) -> None:
        """The service is stopping."""
        self._send(["STOPPING=1", f"STATUS={_one_line(status)}"])

    def _send(self, lines: list[str]) -> None:
        if self._socket is None or not lines:
            return
        with contextlib.suppress(OSError):  # nobody listens, or it is busy: the next message says it again
            self._socket.sendto("\n".join(lines).encode(), self._address)

    def close(self) -> None:
        """Say nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def show_stack_on_abort() -> None:
    """Write to standard error where every thread is when the watchdog ends this process with SIGABRT."""
    if sys.__stderr__ is not None:
        faulthandler.enable(file=sys.__stderr__)


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """WATCHDOG_USEC in seconds, where it is meant for this process (sd_watchdog_enabled(3))."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1_000_000


def _one_line(text: str) -> str:
    return " ".join(text.split())
