"""The file lease: one daemon per state directory.

An flock on `lease` in the state directory, released by the kernel however the process ends. The file says who
holds it, so a second daemon can name the first, and under which epoch: the next one is higher, also where the
journal was lost, or an old copy is back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Final

from cloud.errors import Denied
from cloud.ports import LeaseHolder

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class FileLease:
    """`cloud.ports.Lease` on a local file. `epoch` is set by the daemon once it knows it."""

    def __init__(self, path: Path, *, now: float) -> None:
        self._path = path
        self._place = str(path)  # asked for in every turn
        self._now = now
        self._file: IO[str] | None = None
        self._held = (0, 0)  # device and inode of the locked file

    async def acquire(self) -> LeaseHolder:
        """Take the lease or raise Denied, naming the holder and what to do.

        The epoch is that of the last holder, 0 when it is not known.
        """
        try:
            handle = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115, ASYNC230 - a local file, held for life
        except OSError as error:
            raise Denied(
                f"{self._path.parent}: the state directory is not writable ({error.strerror}); "
                "check its owner and mode, or set daemon.state_dir"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder, _ = _read(handle)
            handle.close()
            raise Denied(
                f"{self._path.parent}: another daemon holds the lease: {holder}; stop it first, or give this "
                "one a state directory of its own"
            ) from error
        except OSError as error:
            handle.close()
            raise Denied(
                f"{self._path}: cannot be locked ({error.strerror}); put the state directory on a local disk"
            ) from error
        found = os.fstat(handle.fileno())
        self._file, self._held = handle, (found.st_dev, found.st_ino)
        _, epoch = _read(handle)
        return self.record(epoch)

    def record(self, epoch: int) -> LeaseHolder:
        """Write the epoch under which the lease is used."""
        return LeaseHolder(who=self._write(epoch=epoch), epoch=epoch)

    def valid(self) -> bool:
        """True while this process holds the lock and the file is still the one it locked."""
        if self._file is None:
            return False
        try:
            on_disk = os.stat(self._place)
        except OSError:
            return False
        return (on_disk.st_dev, on_disk.st_ino) == self._held

    def unanswered(self) -> None:
        """The kernel always answers: a lock that is lost is another's."""
        return

    @property
    def seat(self) -> str:
        """What only one living process can have: this lock, under this boot of this kernel."""
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        return "/".join(map(str, (boot, *self._held)))

    async def release(self) -> None:
        """Give the lease up. Idempotent."""
        self.close()

    def close(self) -> None:
        """Give the lease up, as the kernel does when the process ends. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, *, epoch: int) -> str:
        who = f"pid {os.getpid()} on {socket.gethostname()}"
        if self._file is not None:
            body = json.dumps({"who": who, "epoch": epoch, "since": self._now}).encode()
            # The lock is the lease; who holds it is only for people, and a full disk must not end a daemon.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), 0)
                os.pwrite(self._file.fileno(), body, 0)
        return who


def _read(handle: IO[str]) -> tuple[str, int]:
    """Who holds the lease, or last did, and under which epoch."""
    handle.seek(0)
    try:
        said = json.load(handle)
        return str(said["who"]), int(said["epoch"])
    except (ValueError, KeyError, TypeError):
        return "unknown process", 0
