"""The file of the clients' keys: TOML, one table for each key, of which only the SHA-256 is kept.

    [key.team-a]
    sha256 = "9f86d0818…"          # of the key, as hexadecimal digits
    hint = "x3Zk"                   # its last characters
    models = ["chat", "small-*"]    # names that it may ask for; not written: all
    requests_per_minute = 600       # 0 or not written: no limit; so with the next two
    tokens_per_minute = 200000
    in_flight = 16
    usd_per_day = "25"              # not written: no limit
    created = 2026-01-31T08:00:00Z
    expires = 2027-01-31            # a day alone stands for its beginning, in UTC
    revoked = 2026-02-01T09:30:00Z  # or true

Whatever is not understood makes the whole file one that is not taken: a misspelt `revoked` must not leave a
key in force. What is said of a fault never repeats a value, which may be a key that was put there by mistake.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from policies.keys import ALL_MODELS, ClientKey, KeyLimits
from policies.spend import PICO, usd

BYTES_MOST: Final = 4 * 2**20
"""Size of a file that is read: some ten thousand keys."""

_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place blocks nobody

PREFIX: Final = "sk-orch-"
"""How keys begin that are made here, so that scanners of secrets know one."""

OTHERS: Final = "other"
"""Stands for many keys together in metrics; no key has this name."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COUNTS: Final = ("requests_per_minute", "tokens_per_minute", "in_flight")
_FIELDS: Final = frozenset(
    {"sha256", "hint", "models", *_COUNTS, "usd_per_day", "created", "expires", "revoked"}
)
_WORD: Final = re.compile(r"[a-z][a-z_]{0,24}")
_REPEATED: Final = re.compile(r"'[^']{4,}'")
_LONGEST_HINT: Final = 8  # characters; more would give too much of a key away
_COUNT_MOST: Final = 10**12


class KeyFileError(ValueError):
    """The file cannot be taken. The message follows its path, and holds nothing that could be a key."""


def digest(key: str) -> str:
    """The SHA-256 of a key, as the file has it. Any text has one, also what came as no UTF-8."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def name_fault(name: str) -> str:
    """Why a key cannot have this name, empty when it can."""
    if name == OTHERS:
        return f"the name {OTHERS} stands for all further keys in metrics; take another"
    if name.startswith("sk-"):
        return "it looks like a key, and names are shown to everybody"
    if _NAME.fullmatch(name) is None:
        return "a name has up to 64 letters, digits, - and _, and begins with a letter or a digit"
    return ""


def content(path: Path) -> bytes:
    """All bytes of a plain file, or as many as show that it is too large. Raises KeyFileError, OSError."""
    number = os.open(path, _OPEN)
    with open(number, "rb") as file:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError("is no plain file")
        directory = os.stat(path.parent)
        trusted = (0, os.geteuid(), directory.st_uid)
        if directory.st_mode & stat.S_IWOTH and status.st_uid not in trusted:
            raise KeyFileError(f"belongs to user {status.st_uid}, and anyone may write to its directory")
        return file.read(BYTES_MOST + 1)


def read_keys(data: bytes) -> dict[str, ClientKey]:
    """The keys in the content of a file, by name. Raises KeyFileError."""
    if len(data) > BYTES_MOST:
        raise KeyFileError(f"has more than {BYTES_MOST} bytes")
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise KeyFileError("is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"is not TOML: {_said(str(error))}") from None
    except (RecursionError, ValueError):  # nested without end, a number of thousands of digits
        raise KeyFileError("is not TOML that could be a file of keys") from None
    if strange := sorted(found.keys() - {"key"}):
        raise KeyFileError(f"has something beside its tables [key.NAME]: {_named(strange[0])}")
    tables = found.get("key", {})
    if not isinstance(tables, dict):
        raise KeyFileError("has something else than tables [key.NAME] under key")
    keys = {name: _key(name, table) for name, table in tables.items()}
    owners: dict[str, str] = {}
    for key in keys.values():
        if (other := owners.setdefault(key.sha256, key.name)) != key.name:
            raise KeyFileError(f"has one key under two names, {other} and {key.name}")
    return keys


def write_key(key: ClientKey) -> str:
    """The table of a key, as text."""
    limits = key.limits
    rows: list[tuple[str, str]] = [("sha256", f'"{key.sha256}"'), ("hint", f'"{key.hint}"')]
    if key.models != ALL_MODELS:
        rows.append(("models", f"[{', '.join(_string(each) for each in key.models)}]"))
    rows += [(name, str(count)) for name in _COUNTS if (count := getattr(limits, name))]
    if limits.usd_per_day is not None:
        rows.append(("usd_per_day", f'"{Decimal(limits.usd_per_day) / PICO:f}"'))
    moments = {"created": key.created or None, "expires": key.expires, "revoked": key.revoked}
    rows += [(name, write_moment(moment)) for name, moment in moments.items() if moment is not None]
    return "".join([f"[key.{key.name}]\n", *(f"{name} = {value}\n" for name, value in rows)])


def write_moment(moment: float) -> str:
    """Seconds since 1970 as the file has them, whole."""
    return f"{datetime.fromtimestamp(int(moment), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _key(name: str, table: Any) -> ClientKey:
    def fault(text: str) -> KeyFileError:
        return KeyFileError(f"key {name}: {text}")

    if wrong := name_fault(name):
        raise KeyFileError(f"has a key whose name cannot be: {wrong}")
    if not isinstance(table, dict):
        raise fault("is no table")
    if strange := sorted(table.keys() - _FIELDS):
        raise fault(f"no field is called {_named(strange[0])}")
    sha256, hint, models = table.get("sha256"), table.get("hint", ""), table.get("models", [*ALL_MODELS])
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise fault("sha256 must be the SHA-256 of the key, 64 hexadecimal digits in lower case")
    if not isinstance(hint, str) or len(hint) > _LONGEST_HINT or not hint.isprintable():
        raise fault(f"hint must be text of up to {_LONGEST_HINT} characters, the last ones of the key")
    if not isinstance(models, list) or not all(isinstance(each, str) and each for each in models):
        raise fault('models must be a list of names, as ["chat", "small-*"]')
    try:
        return ClientKey(
            name=name,
            sha256=sha256,
            hint=hint,
            models=tuple(models),
            limits=_limits(table),
            created=_moment(table, "created") or 0.0,
            expires=_moment(table, "expires"),
            revoked=_revoked(table),
        )
    except ValueError as error:
        raise fault(str(error)) from None


def _limits(table: Mapping[str, Any]) -> KeyLimits:
    """Raises ValueError."""
    counts = {}
    for name in _COUNTS:
        count = table.get(name, 0)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _COUNT_MOST:
            raise ValueError(f"{name} must be a whole number, 0 for no limit")
        counts[name] = count
    dollars = table.get("usd_per_day")
    if dollars is not None and (isinstance(dollars, bool) or not isinstance(dollars, str | int | float)):
        raise ValueError('usd_per_day must be an amount in US dollars, as "25"')
    try:
        return KeyLimits(**counts, usd_per_day=None if dollars is None else usd(str(dollars)))
    except ValueError:
        raise ValueError('usd_per_day must be an amount in US dollars, as "25"') from None


def _revoked(table: Mapping[str, Any]) -> float | None:
    """Raises ValueError."""
    if isinstance(said := table.get("revoked"), bool):
        return 0.0 if said else None
    return _moment(table, "revoked")


def _moment(table: Mapping[str, Any], name: str) -> float | None:
    """A date or a time with its offset, in seconds since 1970. Raises ValueError."""
    found = table.get(name)
    if found is None:
        return None
    if isinstance(found, datetime) and found.tzinfo is not None:
        return found.timestamp()
    if isinstance(found, date) and not isinstance(found, datetime):
        return datetime.combine(found, time(), UTC).timestamp()
    raise ValueError(
        f"{name} must be a date or a time in UTC without quotes, as 2027-01-31 or 2027-01-31T08:00:00Z"
    )


def _string(text: str) -> str:
    """A basic string of TOML."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + '"'


def _named(word: str) -> str:
    """A field's name, where it is one: anything else may be a key in the wrong place."""
    return repr(word) if _WORD.fullmatch(word) else "that"


def _said(message: str) -> str:
    """The library's complaint, without what it repeats of the text."""
    return _REPEATED.sub("'...'", message[:1].lower() + message[1:])
