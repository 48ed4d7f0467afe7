"""Changes of the file of keys: one key more, or one revoked, whatever else people wrote into it.

Text is added and nothing else is touched, so comments and hand-written tables stay. What the new text reads
as is compared with what was meant before it takes the old one's place, whole, under a lock that all who
change the file take: either the change is there, or nothing happened. Gateways go on meanwhile and take up
the new file.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from orchestrator.gateway.accounts.key_format import (
    PREFIX,
    KeyFileError,
    content,
    digest,
    read_keys,
    write_key,
    write_moment,
)
from policies.keys import ALL_MODELS, ClientKey, KeyLimits
from policies.value import replace

_HEAD: Final = (
    "# Keys of the gateway's clients, of which only the SHA-256 is kept. See `orchestrator keys`.\n"
)
_HEADER: Final = (
    r"""^[ \t]*\[[ \t]*key[ \t]*\.[ \t]*(?P<q>["']?)NAME(?P=q)[ \t]*\][^\r\n]*(?P<end>\r?\n|\Z)"""
)
_PARTIAL: Final = ".partial"
_RANDOM: Final = 32  # bytes
_HINT: Final = 4  # characters

Waiting = Callable[[], None]
"""Called once where another process holds the lock."""


def generate() -> str:
    """A new key."""
    return PREFIX + secrets.token_urlsafe(_RANDOM)


def made(
    name: str,
    secret: str,
    *,
    now: float,
    models: tuple[str, ...] = ALL_MODELS,
    limits: KeyLimits,
    expires: float | None,
) -> ClientKey:
    """What is kept of a new key. Times are whole seconds, as the file has them."""
    return ClientKey(
        name=name,
        sha256=digest(secret),
        hint=secret[-_HINT:],
        models=models,
        limits=limits,
        created=float(int(now)),
        expires=None if expires is None else float(int(expires)),
    )


def read_file(path: Path) -> dict[str, ClientKey]:
    """The keys of a file, by name. Raises KeyFileError, OSError."""
    return read_keys(content(path))


def add(path: Path, key: ClientKey, waiting: Waiting) -> None:
    """Write one key more, into a new file where there is none. Raises KeyFileError, FileExistsError where the
    name is taken, OSError.
    """

    def change(text: str, keys: dict[str, ClientKey]) -> tuple[str, dict[str, ClientKey]]:
        if key.name in keys:
            raise FileExistsError(key.name)
        gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        return f"{text or _HEAD + chr(10)}{gap}{write_key(key)}", {**keys, key.name: key}

    _edit(path, change, waiting, missing_is_empty=True)


def revoke(path: Path, name: str, now: float, waiting: Waiting) -> ClientKey:
    """Have a key hold no longer; returns it as it was. Raises KeyFileError, KeyError where there is no such
    key, OSError.
    """
    found: list[ClientKey] = []

    def change(text: str, keys: dict[str, ClientKey]) -> tuple[str, dict[str, ClientKey]]:
        found.append(keys[name])
        if keys[name].revoked is not None:
            return text, keys
        header = re.compile(_HEADER.replace("NAME", re.escape(name)), re.M)
        after = {**keys, name: replace(keys[name], revoked=float(int(now)))}

        def marked(match: re.Match[str]) -> str:
            end = match["end"] or "\n"
            return f"{match[0].rstrip()}{end}revoked = {write_moment(now)}{end}"

        return header.sub(marked, text, count=1), after

    _edit(path, change, waiting)
    return found[0]


def _edit(
    path: Path,
    change: Callable[[str, dict[str, ClientKey]], tuple[str, dict[str, ClientKey]]],
    waiting: Waiting,
    *,
    missing_is_empty: bool = False,
) -> None:
    """Change the file under the lock. `change` gets its text and keys, and returns both as they are to be."""
    real = Path(os.path.realpath(path))  # a link stays a link
    with _locked(real.parent, waiting):
        for partial in real.parent.glob(
            f".{glob.escape(real.name)}.*{_PARTIAL}"
        ):  # of a command that was killed
            partial.unlink()
        try:
            data, status = content(real), os.stat(real)
        except FileNotFoundError:
            if not missing_is_empty:
                raise
            data, status = b"", None
        keys = read_keys(data)
        text, wanted = change(data.decode("utf-8"), keys)
        if wanted == keys:
            return
        try:
            came = read_keys(text.encode())
        except KeyFileError:
            came = None
        if came != wanted:
            raise KeyFileError("is written in a form that this command cannot change; change it by hand")
        _replace(real, text.encode(), status)


@contextlib.contextmanager
def _locked(directory: Path, waiting: Waiting) -> Iterator[None]:
    """Hold the directory's lock (flock(2)), for which no file is left behind."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _replace(path: Path, data: bytes, before: os.stat_result | None) -> None:
    """Put new content in the place of a file, with its mode and owner; readers see the one or the other.

    A new file is its directory's: its owner's where root makes it, and for its group to read where files take
    that (a set-group-ID directory, as the service's is).
    """
    directory = os.stat(path.parent)
    shared = bool(directory.st_mode & stat.S_ISGID)
    if before is not None:
        owner, group, mode = before.st_uid, before.st_gid, stat.S_IMODE(before.st_mode)
    else:
        owner = directory.st_uid if os.geteuid() == 0 else os.geteuid()
        group = directory.st_gid if shared or os.geteuid() == 0 else os.getegid()
        mode = 0o640 if shared else 0o600
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")
    number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(number, "wb") as file:
            made = os.fstat(number)
            if (made.st_uid, made.st_gid) != (owner, group):
                os.fchown(number, owner, group)
            os.fchmod(number, mode)
            file.write(data)
            file.flush()
            os.fsync(number)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    number = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
