"""Where keys of clients, or those of certificates, are told: command lines, files, and whatever was said."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path


class CommandLines:
    """Every command line that runs on this machine while it is watched."""

    def __init__(self) -> None:
        self._found: set[bytes] = set()

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look several times a second until the block ends."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(0.05)

    def _look(self) -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                self._found.add((entry / "cmdline").read_bytes())

    @property
    def text(self) -> bytes:
        """All of them."""
        return b"\n".join(sorted(self._found))


def digest(key: str) -> bytes:
    """What the file of keys has of a key."""
    return hashlib.sha256(key.encode()).hexdigest().encode()


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """What lies on disk: state, logs of all and of the nodes, databases; and the file of keys."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "listener.key":
            yield str(path.relative_to(directory)), path.read_bytes()


def leaks(found: Mapping[str, bytes], keys: Mapping[str, str], private: set[bytes]) -> list[str]:
    """Where a key is found, or that of a certificate; or the digest of a key elsewhere than in its file."""
    told = [
        f"key {name} in {where}"
        for where, text in found.items()
        for name, key in keys.items()
        if key.encode() in text
    ]
    told += [
        f"the certificate's key in {where}"
        for where, text in found.items()
        if any(p in text for p in private)
    ]
    for name, key in keys.items():
        told += [
            f"digest of {name} in {where}"
            for where, text in found.items()
            if digest(key) in text and not where.startswith("keys.toml")
        ]
    return told
