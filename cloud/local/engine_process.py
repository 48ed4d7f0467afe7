"""The engine process of one machine: started in its own session, watched, its output bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloud.local.processes import dying_with_parent, members, start_time
from cloud.logger import structlog
from cloud.ports import CONSOLE_MOST, console_end

log = structlog.get_logger("local")

_READ = 4 * CONSOLE_MOST
"""Bytes that are read of the end of an output: what is cut from it may be escape sequences."""


_BEGINNING = 512 * 1024
"""Bytes that are read of the beginning of an output: vLLM writes some tens of KiB before it serves."""


class EngineProcess:
    """A running engine: a leader and its process group. `exited` is set when the leader has exited.

    The kernel reports the exit through a pidfd. A group's number is given to strangers once the group is
    empty, so a group whose leader has gone is ours only while a member lives that was there then.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_exit: Callable[[int], None]) -> None:
        self.group = process.pid
        self.exited = asyncio.Event()
        self._process = process
        self._on_exit = on_exit
        self._survivors: dict[int, int] = {}
        self._descriptor = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    def owns_group(self) -> bool:
        """True while the process group is surely this engine's."""
        if not self.exited.is_set():
            return True
        return any(start_time(pid) == began for pid, began in self._survivors.items())

    def signal(self, number: int) -> None:
        """Signal the leader."""
        self._process.send_signal(number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._survivors = members(self.group)  # before reaping: the leader's number keeps the group ours
        code = self._process.wait()
        self.exited.set()
        self._on_exit(code)


def start_engine(
    argv: Sequence[str], environment: Mapping[str, str], directory: Path, output: Path
) -> subprocess.Popen[bytes]:
    """Start an engine in a session (and so a process group) of its own; it dies with this process.

    Raises OSError when it cannot be started; the reason is in the output file too, where people look.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=directory,
                env=environment,
                start_new_session=True,
                preexec_fn=dying_with_parent(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            file.write(f"{argv[0]}: cannot be started: {error}\n".encode())
            raise OSError(str(error)) from error


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace {host} and {port} and nothing else: an engine's own braces (JSON flags) stay."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def read_end(path: Path) -> str:
    """The end of an engine's output as text that may be shown; empty where there is none."""
    written = b""
    for part in (_moved(path), path):
        with contextlib.suppress(OSError), part.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _READ))
            written += file.read(_READ)
    return console_end(written.decode(errors="replace"))


def length(path: Path) -> int:
    """Bytes of output that are there, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_beginning(path: Path, skip: int) -> list[str]:
    """The first lines of an engine's output after so many bytes; none once they were moved aside."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END) >= skip:
            file.seek(skip)
            return file.read(_BEGINNING).decode(errors="replace").splitlines()
    return []


def _moved(path: Path) -> Path:
    """Where the older output of an engine is."""
    return path.with_suffix(".log.1")


def bound_log(path: Path, most: int) -> None:
    """Move output beyond `most` bytes aside. The engine appends, so emptying the file under it is safe."""
    try:
        if path.stat().st_size <= most:
            return
        with path.open("r+b") as file:
            file.seek(-most, os.SEEK_END)
            _moved(path).write_bytes(file.read())
            file.truncate(0)
    except OSError as error:
        log.warning("engine_log.trim_failed", path=str(path), error=str(error))
