"""The key of a provider, from a file that may change while the gateway runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

_LONGEST = 64 * 1024
_HIDDEN = "[key]"


class NoKey(Exception):
    """There is no key that could be shown; the message says why, without what the file holds."""


class KeyFile:
    """Reads a key and reads it again when its file is another, so that a key is changed without a restart.

    A relative name is looked up in `$CREDENTIALS_DIRECTORY`, where systemd puts credentials. Without a path
    the provider wants no key. `changes` counts the keys that were read.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, str]) -> None:
        directory = environment.get("CREDENTIALS_DIRECTORY")
        self.path = path if path is None or path.is_absolute() or not directory else Path(directory) / path
        self._seen: tuple[int, int, int, int] | None = None
        self._key = ""
        self.changes = 0

    def read(self) -> str:
        """The key; empty where none is wanted. Raises NoKey."""
        if self.path is None:
            return ""
        try:
            found = os.stat(self.path)
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
                raise NoKey(f"its key file {self.path} is no file")
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if seen != self._seen:
                self._take(self.path)
                self._seen = seen
        except OSError as error:
            self._seen = None
            raise NoKey(f"its key file {self.path} cannot be read: {error.strerror or error}") from None
        return self._key

    def hide(self, text: str) -> str:
        """The text without the key, should it be in there."""
        return text.replace(self._key, _HIDDEN) if self._key else text

    def _take(self, path: Path) -> None:
        with path.open("rb") as file:
            data = file.read(_LONGEST).strip()
        if not data:
            raise NoKey(f"its key file {path} is empty")
        if not data.isascii() or len(data.split()) > 1 or not data.decode("ascii").isprintable():
            raise NoKey(f"its key file {path} holds more than a key: one word of plain letters is wanted")
        if (key := data.decode("ascii")) != self._key:
            self._key = key
            self.changes += 1
