"""The target set on the disk: a file and its copy, each with a checksum.

    {"schema": "targets-file/1", "sha256": "9f86...", "set": {"schema": "targets/3", ...}}

`sha256` is that of `set` as compact JSON, so a byte that was changed on the disk or by hand is noticed also
where the set would still read well. A bare document (`cloud.balancers.targets`) is read too: it has no
checksum. Earlier versions wrote the file so, and an operator may in an emergency; nothing that damages a file
with a checksum makes one without.

The second copy lies beside the file and has `.copy` at the end of its name. It is written after the file,
with the same content, so that at every instant one of the two is whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from cloud.balancers.targets import MAX_BYTES, TargetsError, TargetSet, encode, parse
from cloud.durable import write_atomic
from cloud.errors import Denied

SCHEMA: Final = "targets-file/1"

_KEYS: Final = frozenset({"schema", "sha256", "set"})
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place blocks nobody


def copy_of(path: Path) -> Path:
    """Where the second copy lies."""
    return path.with_name(f"{path.name}.copy")


def seal(document: TargetSet) -> bytes:
    """The content of a file that holds this set. Raises TargetsError where `parse` would refuse the set."""
    body = encode(document).rstrip(b"\n")
    return b'{"schema":"%s","sha256":"%s","set":%s}\n' % (SCHEMA.encode(), _sum(body), body)


def unseal(data: bytes) -> TargetSet:
    """The set in the content of a file. Raises TargetsError where the content is not what was written."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise TargetsError(f"it is not JSON: {error}") from None
    if not isinstance(body, dict) or ("set" not in body and "sha256" not in body):
        return parse(data)
    if body.keys() != _KEYS or body["schema"] != SCHEMA:
        raise TargetsError(f"it is no {SCHEMA!r} document, which is all that this version reads")
    try:
        held = orjson.dumps(body["set"])
    except orjson.JSONEncodeError as error:
        raise TargetsError(f"it is no target set: {error}") from None
    if body["sha256"] != _sum(held).decode():
        raise TargetsError("its checksum is wrong: it was damaged, or changed by hand")
    return parse(held)


def read(path: Path) -> TargetSet:
    """The set in one file. Raises TargetsError for a file that is not to be believed, OSError."""
    return unseal(_content(path))


def write(path: Path, document: TargetSet) -> None:
    """Have the file and its copy hold this set; what holds it already is left alone. Blocks on the disk.

    A file that cannot be believed is replaced. Raises Denied where one of the two holds a higher generation,
    since another daemon leads then, or another pool's set; OSError.
    """
    content = seal(document)
    paths = (path, copy_of(path))
    held = {place: found for place in paths for found in _found(place)}
    for place, found in held.items():
        if found.pool != document.pool:
            raise Denied(
                f"{place} holds the set of pool {found.pool!r}, not of {document.pool!r}: give each pool a "
                "targets_file of its own, or remove this one if its pool has another name now"
            )
        if found.generation > document.generation:
            raise Denied(
                f"{place} holds generation {found.generation}, newer than {document.generation}: "
                "another daemon leads"
            )
    for place in paths:
        if held.get(place) != document:
            write_atomic(place, content)


def _found(path: Path) -> Iterator[TargetSet]:
    """The set in a file, or nothing where no gateway would load it."""
    try:
        yield read(path)
    except (FileNotFoundError, TargetsError):
        return


def _content(path: Path) -> bytes:
    """All bytes of a plain file of bounded size. Raises TargetsError, OSError."""
    try:
        number = os.open(path, _OPEN)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TargetsError("it is a symbolic link, and the daemon writes none") from None
        if error.errno == errno.ENXIO:
            raise TargetsError("it is no plain file") from None
        raise
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise TargetsError("it is no plain file")
        if status.st_size > MAX_BYTES:
            raise TargetsError(f"it has {status.st_size} bytes, and a target set has at most {MAX_BYTES}")
        _check_owner(path, status.st_uid)
        with open(number, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(number)


def _check_owner(path: Path, owner: int) -> None:
    """Where anyone may make files, only those of root, of this user and of the directory's owner count.

    Raises TargetsError.
    """
    directory = os.stat(path.parent)
    if directory.st_mode & stat.S_IWOTH and owner not in (0, os.geteuid(), directory.st_uid):
        raise TargetsError(f"it belongs to user {owner}, and anyone may write to {path.parent}")


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def stamp(path: Path) -> Any:
    """Equal for as long as the file was not replaced or changed. Raises OSError."""
    status = os.lstat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
