"""Directories and sockets that the file names: whether they can be made and used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.config.errors import Found, Key

_SOCKET_PATH_LIMIT: Final = 107  # bytes; sun_path holds 108 with the closing zero (unix(7))


def directory_errors(path: Key, directory: Path) -> Iterator[Found]:
    """What keeps this user from writing there."""
    if directory.exists():
        if not directory.is_dir():
            yield path, f"{directory} is a file; name a directory"
        elif not os.access(directory, os.W_OK | os.X_OK):
            yield (
                path,
                f"{directory} cannot be written by this user; change its owner or name another directory",
            )
        return
    parent = directory.parent
    if parent.exists() and not parent.is_dir():
        yield path, f"{parent} is a file, so {directory.name} cannot be created in it; name another directory"
    elif not parent.is_dir():
        yield path, f"{parent} does not exist; create it with mkdir -p, or name another directory"
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield path, f"{parent} cannot be written by this user, so {directory.name} cannot be created in it"


def socket_errors(path: Key, socket: Path) -> Iterator[Found]:
    """A path that is too long for a unix socket."""
    length = len(os.fsencode(socket))
    if length > _SOCKET_PATH_LIMIT:
        yield (
            path,
            f"{socket} has {length} bytes, and a unix socket's path may have {_SOCKET_PATH_LIMIT}; "
            "choose a shorter daemon.state_dir",
        )
