"""Durations, shares, sizes and addresses as people write them. Imports nothing heavy.

Every parser raises ValueError with a sentence that says what is wrong and what to write.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION_PATTERN: Final = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION: Final = re.compile(DURATION_PATTERN)
_PLAIN_NUMBER: Final = re.compile(r"^\d+(\.\d+)?$")
_SIZE: Final = re.compile(r"^(\d+(?:\.\d+)?)\s*([A-Za-z]+)$")
_SIZES: Final = {
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
}
_HOST_PORT: Final = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})$")


def parse_duration(text: str) -> float:
    """Seconds of a text such as "90s", "15m", "1h30m" or "500ms"."""
    compact = text.strip().replace(" ", "")
    if _DURATION.match(compact):
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(compact))
    if _PLAIN_NUMBER.match(compact):
        raise ValueError(no_unit(shown(text), compact))
    raise ValueError(
        f'{shown(text)} is not a duration; write a number with a unit, such as "90s", "15m" or "2h"'
    )


def no_unit(written: str, number: str) -> str:
    """What to say of a number that could be seconds or minutes."""
    return f'{written} has no unit; write "{number}s" for seconds or "{number}m" for minutes'


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back as `seconds`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _UNITS[unit]
        if seconds and count == int(count):
            return f"{int(count)}{unit}"
    if seconds == 0:
        return "0s"
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"


def parse_share(text: str) -> float:
    """Fraction of one of a text such as "70%" or "0.7"."""
    compact = text.strip()
    try:
        # Rounded, so that "99.9%" is the same number as 0.999.
        return round(float(compact[:-1].strip()) / 100.0, 12) if compact.endswith("%") else float(compact)
    except ValueError:
        raise ValueError(
            f'{shown(text)} is not a share; write a percentage such as "70%" or a fraction such as 0.7'
        ) from None


def parse_host_port(text: str) -> HostPort:
    """An address such as "127.0.0.1:9477" or "[::1]:9477"."""
    match = _HOST_PORT.match(text.strip())
    if match is None:
        raise ValueError(f'{shown(text)} is not host:port; write an address such as "127.0.0.1:9477"')
    port = int(match.group(3))
    if port > 65535:
        raise ValueError(f"port {port} does not exist; write one from 1 to 65535, or 0 for any free port")
    return HostPort(host=(match.group(1) or match.group(2)).lower(), port=port)


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen. Port 0 means any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def parse_size(text: str) -> int:
    """Bytes of a text such as "32MiB", "64kB" or "512B"."""
    match = _SIZE.match(text.strip())
    if match is None or match.group(2) not in _SIZES:
        raise ValueError(
            f'{shown(text)} is not a size; write a number with a unit, such as "32MiB" or "64kB"'
        )
    return int(float(match.group(1)) * _SIZES[match.group(2)])


def format_size(count: int) -> str:
    """The shortest text that `parse_size` reads back as `count`."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if count and count % _SIZES[unit] == 0:
            return f"{count // _SIZES[unit]}{unit}"
    return f"{count}B"


def shown(value: object) -> str:
    """A value as the TOML file has it, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
