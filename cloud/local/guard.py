"""Sees to it that no process of a node outlives its cloud.

A small process of its own waits for the cloud's death (see `processes.main`). Together with the kernel's
parent-death signal for engines and the table that is read at the next start, a killed cloud leaves nothing.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from cloud.local import processes


class Guard:
    """The guard process of the cloud with id `cloud`, which marks its nodes."""

    def __init__(self, cloud: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(processes.__file__)), cloud],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def began(self, group: int) -> None:
        """A process group has begun."""
        self._tell(f"+{group}\n")

    def ended(self, group: int) -> None:
        """A process group has ended; its number may be given to strangers now."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """The cloud ends in order and has ended its nodes itself."""
        self._tell("end\n")
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        # A guard that somebody killed leaves the two other safeties; the cloud goes on.
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
