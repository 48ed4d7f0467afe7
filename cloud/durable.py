"""Files that survive a power cut."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Final

_serial: Final = itertools.count()  # two writers in one process never share a temporary file


def write_atomic(path: Path, data: bytes, *, mode: int | None = None, synced: bool = True) -> None:
    """Replace a file so that a reader sees the old or the new content, also after a power cut.

    Writes a temporary file beside it, syncs, renames, syncs the directory. `mode`: its permissions, where not
    those of any new file. Not `synced`, it may be empty after a power cut, until `sync`. Blocks on the disk.
    Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{next(_serial)}.partial")
    try:
        with open(partial, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if synced:
        sync_directory(path.parent)


def sync(path: Path) -> None:
    """Have a file that was replaced survive a power cut. Blocks on the disk. Raises OSError."""
    _sync(path, os.O_RDONLY)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have what was renamed or removed in a directory survive a power cut. Blocks on the disk. Raises
    OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)
