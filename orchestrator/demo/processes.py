"""The demo's processes: started with their output in files, watched, and ended whatever happens."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from cloud.ports import Clock

_PR_SET_PDEATHSIG = 1
_STOP_AFTER = 15.0


class ProcessError(Exception):
    """A process of the demo did not start or ended by itself. The message ends with its last words."""


class Process:
    """One command in a process of its own, which dies with the demo."""

    def __init__(
        self,
        name: str,
        *arguments: str,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "orchestrator"),
    ) -> None:
        """`environment` is added to this process's own; `arguments` follow the words of `program`."""
        self.name = name
        self._program = tuple(program)
        self.log = directory / f"{name}.log"
        self._arguments = arguments
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *self._program,
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """Its process id; 0 when it was never started."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        """True from its start to its end."""
        return self._process is not None and self._process.returncode is None

    def check(self) -> None:
        """Raise ProcessError when it has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise ProcessError(
                f"{self.name} ended with code {self._process.returncode}; its log {self.log} ends with:\n"
                + self.last_words()
            )

    def last_words(self, lines: int = 12) -> str:
        """The end of its log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(text.splitlines()[-lines:])

    async def stop(self) -> int | None:
        """SIGTERM, and SIGKILL when that is not enough. Idempotent. Returns the exit code, if it ever ran."""
        process = self._process
        if process is None or process.returncode is not None:
            return None if process is None else process.returncode
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_AFTER):
                return await process.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int | None:
        """SIGKILL, as in a crash. Idempotent. Returns the exit code, if it ever ran."""
        process = self._process
        if process is None:
            return None
        if process.returncode is None:
            process.kill()
        return await process.wait()

    async def ended(self) -> int | None:
        """Wait until it ends by itself. Returns the exit code, if it ever ran."""
        return None if self._process is None else await self._process.wait()


async def wait_for(
    ready: Callable[[], Awaitable[bool]],
    processes: tuple[Process, ...],
    *,
    seconds: float,
    clock: Clock,
    what: str,
) -> None:
    """Ask `ready()` until it is true. Raises ProcessError when a process ends or time runs out."""
    until = clock.now() + seconds
    while not await ready():
        for process in processes:
            process.check()
        if clock.now() > until:
            words = "\n".join(f"--- {p.name}\n{p.last_words(4)}" for p in processes)
            raise ProcessError(f"{what} did not happen within {seconds:.0f} s\n{words}")
        await clock.sleep(0.1)


def die_with_parent() -> None:
    """Runs in the child before exec: the kernel ends it when the demo is killed."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
