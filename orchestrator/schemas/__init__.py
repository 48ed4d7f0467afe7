"""The JSON Schemas that ship with the package: of every `-o json` answer and of the configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_DIRECTORY: Final = Path(__file__).parent
_SUFFIX: Final = ".schema.json"


def names() -> list[str]:
    """The names that `read` knows."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in _DIRECTORY.glob(f"*{_SUFFIX}"))


def read(name: str) -> str:
    """The text of one schema. Raises KeyError for a name that `names` does not list."""
    if name not in names():
        raise KeyError(name)
    return (_DIRECTORY / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
