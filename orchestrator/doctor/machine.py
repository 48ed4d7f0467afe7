"""What this machine says of itself: limits, file systems, locks, who listens. Reads /proc, changes nothing.

Formats: proc(5), "/proc/[pid]/mountinfo", "/proc/locks", "/proc/net/tcp", "/proc/[pid]/limits".
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A TCP socket that listens. `pid` is 0 and `command` empty when this user may not see whose it is."""

    host: str
    port: int
    pid: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left of a file system: bytes and files that this user may still write."""

    bytes: int
    files: int
    read_only: bool


def open_files_limit(pid: int = 0) -> int | None:
    """How many files a process may have open (0: this one); None when this user may not see that."""
    if not pid:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return soft if soft != resource.RLIM_INFINITY else 2**31
    try:
        lines = (_PROC / str(pid) / "limits").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Max open files"):
            soft_text = line.removeprefix("Max open files").split()[0]
            return int(soft_text) if soft_text.isdigit() else 2**31
    return None


def file_system(path: Path, table: str | None = None) -> str:
    """The type of the file system that holds a path, such as ext4; empty when it is not known.

    `table` is read instead of /proc/self/mountinfo.
    """
    if table is None:
        try:
            table = (_PROC / "self" / "mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    place, best, found = path.resolve(), -1, ""
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mount = Path(fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        depth = len(mount.parts)
        if (place == mount or mount in place.parents) and depth >= best:  # a later mount hides an earlier
            best, found = depth, after.split()[0]
    return found


def room(path: Path) -> Room:
    """What is left where a path is. Raises OSError."""
    found = os.statvfs(path)
    return Room(
        bytes=found.f_bavail * found.f_frsize,
        files=found.f_favail if found.f_files else 2**31,  # some count none
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


def lock_holder(path: Path, written: int, table: str | None = None) -> int | None:
    """The pid that holds a flock on a file, 0 for nobody, None when it is not known.

    Asking the kernel's list takes nothing: a try to lock could make a starting daemon fail. Some file systems
    have another device there than in stat(2); the pid `written` in the file tells then. Locks of processes
    in other pid namespaces are not listed.
    """
    try:
        text = (_PROC / "locks").read_text(encoding="utf-8") if table is None else table
        found = path.stat()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[5].endswith(f":{found.st_ino}"):
            continue
        if fields[5] == device or fields[4] == str(written):
            return int(fields[4])
    return 0


def listeners() -> list[Listener]:
    """Every TCP socket that listens here. Raises OSError where there is no /proc."""
    owners = dict(_sockets())
    found = []
    for table in ("tcp", "tcp6"):
        file = _PROC / "net" / table
        if not file.exists():
            continue
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING:
                host, _, port = fields[1].partition(":")
                pid = owners.get(fields[9], 0)
                found.append(
                    Listener(host=_address(host), port=int(port, 16), pid=pid, command=_command(pid))
                )
    return found


def _sockets() -> Iterator[tuple[str, int]]:
    """(inode, pid) of the sockets of the processes that this user may look into."""
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            files = list((process / "fd").iterdir())
        except OSError:  # not ours, or gone meanwhile
            continue
        for file in files:
            with contextlib.suppress(OSError):  # closed meanwhile
                link = os.readlink(file)
                if link.startswith("socket:["):
                    yield link[8:-1], int(process.name)


def _command(pid: int) -> str:
    if not pid:
        return ""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()


def _address(text: str) -> str:
    """An address as /proc/net writes it: 32-bit words in the machine's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
