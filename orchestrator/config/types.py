"""Units in the configuration file: durations, shares, money, addresses, paths.

Each type parses what people write and says in one sentence what is wrong and what to write instead. A number
without a unit is refused where the unit could be mistaken. In Python (validation without a context) plain
numbers are taken in the base unit: seconds, fractions of one, US dollars per hour.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic.fields import FieldInfo

from orchestrator.units import (
    DURATION_PATTERN,
    HostPort,
    format_duration,
    format_size,
    no_unit,
    parse_duration,
    parse_host_port,
    parse_share,
    parse_size,
    shown,
)

STATE_DIR: Final = "{state_dir}"
"""Stands for `daemon.state_dir` in every path of the file."""

CREDENTIALS: Final = "{credentials}"
"""Stands for the directory of the unit's systemd credentials ($CREDENTIALS_DIRECTORY)."""

MOST_UNITS: Final = 500
"""The most serving units of one node: what a target set has weights for."""

UNLIMITED: Final = "unlimited"
"""An amount of money without a bound."""

SQLITE: Final = "sqlite"
"""`daemon.store` for a journal in a file."""

_MONEY: Final = re.compile(r"^\$?\s*(\d+(?:\.\d+)?)\s*(?:USD(?:/h)?)?$", re.IGNORECASE)
_DOLLARS: Final = re.compile(r"^\$?\s*(\d{1,9}(?:\.\d{1,9})?)\s*(?:USD)?$", re.IGNORECASE)
_T = TypeVar("_T")


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values keep their type, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_S = TypeVar("_S", bound=Section)


def revised(section: _S, changes: Mapping[str, object]) -> _S:
    """The same table with other values. What counts as written stays as it was."""
    values: dict[str, Any] = {**dict(section), **changes}
    return cast("_S", type(section).model_construct(section.model_fields_set, **values))


def _units_needed(info: ValidationInfo) -> bool:
    return bool(info.context and info.context.get("units"))


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _duration(value: object, info: ValidationInfo) -> float:
    number = _number(value)
    if isinstance(value, str):
        return parse_duration(value)
    if number is None:
        raise ValueError(f'{shown(value)} is not a duration; write text such as "90s" or "15m"')
    if number < 0:
        raise ValueError(f"{shown(value)} is negative; a duration starts at 0")
    if _units_needed(info) and number != 0:
        raise ValueError(no_unit(shown(value), shown(value)))
    return number


def _duration_or_off(value: object, info: ValidationInfo) -> float | None:
    return None if value is None or value == "off" else _duration(value, info)


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


def _money_or_unlimited(value: object) -> float | None:
    if value is None or value == UNLIMITED:
        return None
    try:
        return _money(value)
    except ValueError as error:
        wrong = str(error).partition(";")[0]
    raise ValueError(f'{wrong}; write US dollars per hour, such as "12.50", or "{UNLIMITED}"')


def _dollars(value: object) -> Decimal:
    """An exact amount. A number is taken as it is written: 0.3 is three tenths."""
    text = value.strip() if isinstance(value, str) else "" if _number(value) is None else str(value)
    if isinstance(value, Decimal):
        return value
    if match := _DOLLARS.match(text):
        return Decimal(match.group(1))
    raise ValueError(f'{shown(value)} is not an amount; write US dollars, such as "12.50"')


def _dollars_or_unlimited(value: object) -> Decimal | None:
    if value is None or value == UNLIMITED:
        return None
    amount = None
    with contextlib.suppress(ValueError):
        amount = _dollars(value)
    wrong = "is not an amount" if amount is None else "allows nothing at all" if amount == 0 else ""
    if wrong:
        raise ValueError(f'{shown(value)} {wrong}; write US dollars a day, such as "12.50", or "{UNLIMITED}"')
    return amount


def _listed(value: object) -> object:
    """A list of the file; what is none is left to the model, which says so."""
    return tuple(value) if isinstance(value, list) else value


def _size(value: object, info: ValidationInfo) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0 and not _units_needed(info):
        return value
    raise ValueError(f'{shown(value)} is not a size; write text such as "32MiB"')


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


def is_credential(path: Path) -> bool:
    """A secret that the service manager hands over and that is not here."""
    return path.parts[:1] == (CREDENTIALS,)


def unreadable(file: Path) -> str:
    """Why this process cannot read a file, as a sentence; empty when it can."""
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        regular = False
    except OSError as error:
        return f"{file} cannot be read by this user ({(error.strerror or str(error)).lower()})"
    if not regular:
        return f"there is no file {file}; create it or correct the path"
    return "" if os.access(file, os.R_OK) else f"{file} cannot be read by this user; give it read permission"


def is_open(file: Path) -> bool:
    """True for a file that others than its owner may read; False for one that cannot be looked at."""
    try:
        return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)
    except OSError:
        return False


def resolve_path(path: Path, *, base: Path, state_dir: Path) -> Path:
    """An absolute path: `~`, `{state_dir}` and `{credentials}` filled in, the rest relative to `base`.

    Without credentials of systemd their placeholder stays, and no such file is found.
    """
    text = str(path)
    if is_credential(path):
        return Path(os.environ.get("CREDENTIALS_DIRECTORY", CREDENTIALS) + text.removeprefix(CREDENTIALS))
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


def _host_names(value: object) -> object:
    names = _strings(value)
    for name in names if isinstance(names, tuple) else ():
        if name != "*" and not _HOST_NAME.fullmatch(name):
            raise ValueError(f'{shown(name)} is not a host name; write it without a port, or "*" for all')
    return names


def _networks(value: object) -> object:
    names = _strings(value)
    for name in names if isinstance(names, tuple) else ():
        try:
            ipaddress.ip_network(name, strict=False)
        except ValueError:
            raise ValueError(
                f'{shown(name)} is neither an address nor a network; write text such as "10.0.0.0/8"'
            ) from None
    return names


def _texts(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(
            f'{shown(value)} is not a table; write names and values such as {{ NAME = "value" }}'
        )
    for name, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f'{name} is not text; write {name} = "{shown(item)}"')
    return dict(value)


def _counts(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f'{shown(value)} is not a table; write names and numbers such as {{ "big" = 8 }}')
    for name, item in value.items():
        if isinstance(item, Mapping):
            inner = ".".join([name, *map(str, item)][:2])
            raise ValueError(f'a name with a dot needs quotes; write "{inner}" = 8')
    return dict(value)


def _store_address(value: object) -> str:
    if value == SQLITE:
        return SQLITE
    if not isinstance(value, str) or not value.startswith(("postgresql://", "postgres://")):
        raise ValueError(
            f'{shown(str(value).partition("://")[0])} is no place for a journal; write "{SQLITE}" or a URI '
            'such as "postgresql://orchestrator@db.internal/pool"'
        )
    server, _, settings = value.partition("://")[2].partition("?")
    user, found, _ = server.rpartition("@")
    if (found and ":" in user) or re.search(r"(^|&)password=", settings):
        raise ValueError(
            "it holds a password, which a configuration must not; put it into a file of mode 0600 as "
            "host:port:database:user:password and add ?passfile=FILE"
        )
    return value.replace(CREDENTIALS, os.environ.get("CREDENTIALS_DIRECTORY", CREDENTIALS))


_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_DURATION_SCHEMA: Final = {"type": "string", "pattern": DURATION_PATTERN, "examples": ["90s", "15m", "2h"]}
_SHARE_SCHEMA: Final = {
    "anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?%$"}, {"type": "number", "minimum": 0}],
    "examples": ["70%", 0.7],
}
_ADDRESS_SCHEMA: Final = {"type": "string", "examples": ["127.0.0.1:9477"]}

Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
DurationOrOff = Annotated[
    float | None,
    BeforeValidator(_duration_or_off),
    WithJsonSchema(
        {"type": "string", "pattern": f"^off$|{DURATION_PATTERN}", "examples": ["60s", "10m", "off"]}
    ),
]
Share = Annotated[float, BeforeValidator(_share), WithJsonSchema(_SHARE_SCHEMA)]
Factor = Annotated[float, BeforeValidator(_any_share), WithJsonSchema(_SHARE_SCHEMA)]
Money = Annotated[
    float,
    BeforeValidator(_money),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}], "examples": ["12.50"]}),
]
Prices = Annotated[
    dict[str, Money],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string", "examples": ["6.88"]}}),
]
MoneyOrUnlimited = Annotated[
    float | None,
    BeforeValidator(_money_or_unlimited),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}], "examples": ["12.50", UNLIMITED]}),
]
_DOLLARS_SCHEMA: Final = {"anyOf": [{"type": "string"}, {"type": "number"}], "examples": ["12.50"]}
Dollars = Annotated[Decimal, BeforeValidator(_dollars), WithJsonSchema(_DOLLARS_SCHEMA)]
DollarsOrUnlimited = Annotated[
    Decimal | None, BeforeValidator(_dollars_or_unlimited), WithJsonSchema(_DOLLARS_SCHEMA)
]
Listed = Annotated[tuple[_T, ...], BeforeValidator(_listed)]
Size = Annotated[
    int, BeforeValidator(_size), WithJsonSchema({"type": "string", "examples": ["32MiB", "64kB"]})
]
Address = Annotated[HostPort, BeforeValidator(_host_port), WithJsonSchema(_ADDRESS_SCHEMA)]
AddressOrOff = Annotated[HostPort | None, BeforeValidator(_host_port_or_off), WithJsonSchema(_ADDRESS_SCHEMA)]
FilePath = Annotated[Path, BeforeValidator(_path), WithJsonSchema({"type": "string"})]
Strings = Annotated[
    tuple[str, ...], BeforeValidator(_strings), WithJsonSchema({"type": "array", "items": {"type": "string"}})
]
HostNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_host_names),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
Networks = Annotated[
    tuple[str, ...],
    BeforeValidator(_networks),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
Texts = Annotated[
    dict[str, str],
    BeforeValidator(_texts),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
Count = Annotated[int, Field(ge=1, le=MOST_UNITS)]
Counts = Annotated[
    dict[str, Count],
    BeforeValidator(_counts),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": MOST_UNITS},
        }
    ),
]


StoreAddress = Annotated[
    str,
    BeforeValidator(_store_address),
    WithJsonSchema({"type": "string", "pattern": f"^{SQLITE}$|^postgres(ql)?://"}),
]


def written(field: FieldInfo, value: object) -> str:
    """A value as a file would have it."""
    if isinstance(value, list | tuple) and any(isinstance(item, Section) for item in value):
        return f"[{', '.join(_inline(item) for item in value)}]"
    parsers = {item.func for item in field.metadata if isinstance(item, BeforeValidator)}
    if value is None and parsers & {_money_or_unlimited, _dollars_or_unlimited}:
        return f'"{UNLIMITED}"'
    if value is None:
        return '"off"' if parsers & {_duration_or_off, _host_port_or_off} else "nothing"
    if isinstance(value, int | float) and parsers & {_duration, _duration_or_off}:
        return f'"{format_duration(value)}"'
    if isinstance(value, int | float) and parsers & {_share, _any_share}:
        return f'"{value * 100:g}%"'
    if isinstance(value, int) and _size in parsers:
        return f'"{format_size(value)}"'
    return json.dumps(value, default=str)


def _inline(section: Section) -> str:
    """A table in one line: the keys that were written."""
    fields = type(section).model_fields
    said = [(key, getattr(section, key)) for key in fields if key in section.model_fields_set]
    return "{ " + ", ".join(f"{key} = {written(fields[key], value)}" for key, value in said) + " }"


def duration_key(default: float, text: str) -> Any:
    """A duration key: its default in seconds and its help text."""
    return Field(default=default, description=text, json_schema_extra={"default": format_duration(default)})


def size_key(default: int, text: str) -> Any:
    """A size key: its default in bytes and its help text."""
    return Field(default=default, description=text, json_schema_extra={"default": format_size(default)})


def share_key(default: float, text: str) -> Any:
    """A share key: its default as a fraction and its help text."""
    return Field(default=default, description=text, json_schema_extra={"default": f"{default * 100:g}%"})


def path_key(default: str, text: str) -> Any:
    """A path key: its default, which may start with `{state_dir}`, and its help text."""
    return Field(default=Path(default), description=text, json_schema_extra={"default": default})


def address_key(default: str, text: str) -> Any:
    """An address key: its default as host:port and its help text."""
    return Field(default=parse_host_port(default), description=text, json_schema_extra={"default": default})
