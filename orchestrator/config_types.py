"""Units in the configuration file: durations, shares, money, addresses, paths.

Each type parses what people write and says in one sentence what is wrong and what to write instead. A number
without a unit is refused where the unit could be mistaken. In Python (validation without a context) plain
numbers are taken in the base unit: seconds, fractions of one, US dollars per hour.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

STATE_DIR: Final = "{state_dir}"
"""Stands for `daemon.state_dir` in every path of the file."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PATTERN: Final = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION: Final = re.compile(_DURATION_PATTERN)
_PLAIN_NUMBER: Final = re.compile(r"^\d+(\.\d+)?$")
_MONEY: Final = re.compile(r"^\$?\s*(\d+(?:\.\d+)?)\s*(?:USD(?:/h)?)?$", re.IGNORECASE)
_HOST_PORT: Final = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})$")


def parse_duration(text: str) -> float:
    """Seconds of a text such as "90s", "15m", "1h30m" or "500ms". Raises ValueError with a hint."""
    compact = text.strip().replace(" ", "")
    if _DURATION.match(compact):
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(compact))
    if _PLAIN_NUMBER.match(compact):
        raise ValueError(_no_unit(shown(text), compact))
    raise ValueError(
        f'{shown(text)} is not a duration; write a number with a unit, such as "90s", "15m" or "2h"'
    )


def _no_unit(written: str, number: str) -> str:
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
    """Fraction of one of a text such as "70%" or "0.7". Raises ValueError with a hint."""
    compact = text.strip()
    try:
        return float(compact[:-1].strip()) / 100.0 if compact.endswith("%") else float(compact)
    except ValueError:
        raise ValueError(
            f'{shown(text)} is not a share; write a percentage such as "70%" or a fraction such as 0.7'
        ) from None


def parse_host_port(text: str) -> HostPort:
    """An address such as "127.0.0.1:9477" or "[::1]:9477". Raises ValueError with a hint."""
    match = _HOST_PORT.match(text.strip())
    if match is None:
        raise ValueError(f'{shown(text)} is not host:port; write an address such as "127.0.0.1:9477"')
    port = int(match.group(3))
    if port > 65535:
        raise ValueError(f"port {port} does not exist; write one from 1 to 65535, or 0 for any free port")
    return HostPort(host=match.group(1) or match.group(2), port=port)


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


def _units_needed(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("units"))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _duration(value: object, info: ValidationInfo) -> float:
    number = _number(value)
    if isinstance(value, str):
        return parse_duration(value)
    if number is None:
        raise ValueError(f'{shown(value)} is not a duration; write text such as "90s" or "15m"')
    if number < 0:
        raise ValueError(f"{shown(value)} is negative; a duration starts at 0")
    if _units_needed(info) and number != 0:
        raise ValueError(_no_unit(shown(value), shown(value)))
    return number


def _any_share(value: object) -> float:
    number = parse_share(value) if isinstance(value, str) else _number(value)
    if number is None:
        raise ValueError(f'{shown(value)} is not a share; write "70%" or 0.7')
    if number < 0:
        raise ValueError(f"{shown(value)} is negative; a share starts at 0")
    return number


def _share(value: object) -> float:
    number = _any_share(value)
    if number > 1:
        percent = (
            f'; for {number:g} percent write "{number:g}%"' if 1 < number <= 100 and value == number else ""
        )
        raise ValueError(f"{shown(value)} is more than the whole; a share lies between 0 and 1{percent}")
    return number


def _money(value: object) -> float:
    number = _number(value)
    if isinstance(value, str) and (match := _MONEY.match(value.strip())):
        number = float(match.group(1))
    if number is None:
        raise ValueError(f'{shown(value)} is not an amount; write US dollars per hour, such as "12.50"')
    if number <= 0:
        raise ValueError(
            f"{shown(value)} allows nothing at all; write an amount above 0 or leave the key out"
        )
    return number


def _host_port(value: object) -> HostPort:
    if isinstance(value, HostPort):
        return value
    if isinstance(value, str):
        return parse_host_port(value)
    raise ValueError(f'{shown(value)} is not host:port; write text such as "127.0.0.1:9477"')


def _host_port_or_off(value: object) -> HostPort | None:
    return None if value is None or value == "off" else _host_port(value)


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f'{shown(value)} is not a path; write text such as "/var/lib/orchestrator"')
    return Path(value)


def resolve_path(path: Path, *, base: Path, state_dir: Path) -> Path:
    """An absolute path: `~` and `{state_dir}` filled in, the rest relative to `base`."""
    text = str(path)
    if text == STATE_DIR or text.startswith(STATE_DIR + "/"):
        return Path(str(state_dir) + text.removeprefix(STATE_DIR))
    return Path(os.path.normpath(base / path.expanduser()))


def _strings(value: object) -> object:
    if isinstance(value, list | tuple):
        for item in value:
            if not isinstance(item, str):
                raise ValueError(
                    f"every item is text; write {json.dumps(str(item))}, as the flag would be typed"
                )
        return tuple(value)
    if isinstance(value, str):
        raise ValueError(f"one text is not a list; write {json.dumps(value.split())}")
    raise ValueError(f'{shown(value)} is not a list; write texts such as ["--dtype", "auto"]')


def _texts(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(
            f'{shown(value)} is not a table; write names and values such as {{ NAME = "value" }}'
        )
    for name, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f'{name} is not text; write {name} = "{shown(item)}"')
    return dict(value)


def shown(value: object) -> str:
    """A value as the TOML file has it, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


_DURATION_SCHEMA: Final = {"type": "string", "pattern": _DURATION_PATTERN, "examples": ["90s", "15m", "2h"]}
_SHARE_SCHEMA: Final = {
    "anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?%$"}, {"type": "number", "minimum": 0}],
    "examples": ["70%", 0.7],
}
_ADDRESS_SCHEMA: Final = {"type": "string", "examples": ["127.0.0.1:9477"]}

Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
Share = Annotated[float, BeforeValidator(_share), WithJsonSchema(_SHARE_SCHEMA)]
Factor = Annotated[float, BeforeValidator(_any_share), WithJsonSchema(_SHARE_SCHEMA)]
Money = Annotated[
    float,
    BeforeValidator(_money),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}], "examples": ["12.50"]}),
]
Address = Annotated[HostPort, BeforeValidator(_host_port), WithJsonSchema(_ADDRESS_SCHEMA)]
AddressOrOff = Annotated[HostPort | None, BeforeValidator(_host_port_or_off), WithJsonSchema(_ADDRESS_SCHEMA)]
FilePath = Annotated[Path, BeforeValidator(_path), WithJsonSchema({"type": "string"})]
Strings = Annotated[
    tuple[str, ...], BeforeValidator(_strings), WithJsonSchema({"type": "array", "items": {"type": "string"}})
]
Texts = Annotated[
    dict[str, str],
    BeforeValidator(_texts),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]


def duration_key(default: float, text: str) -> Any:
    """A duration key: its default in seconds and its help text."""
    return Field(default=default, description=text, json_schema_extra={"default": format_duration(default)})


def share_key(default: float, text: str) -> Any:
    """A share key: its default as a fraction and its help text."""
    return Field(default=default, description=text, json_schema_extra={"default": f"{default * 100:g}%"})


def path_key(default: str, text: str) -> Any:
    """A path key: its default, which may start with `{state_dir}`, and its help text."""
    return Field(default=Path(default), description=text, json_schema_extra={"default": default})


def address_key(default: str, text: str) -> Any:
    """An address key: its default as host:port and its help text."""
    return Field(default=parse_host_port(default), description=text, json_schema_extra={"default": default})
