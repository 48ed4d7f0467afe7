"""`orchestrator keys`: the keys of the gateway's clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter, validators

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput
from orchestrator.units import parse_duration
from orchestrator.views.keys import KeyNowView, KeyUseView, KeyView, ListedKeyView
from policies.keys import ALL_MODELS, ClientKey, KeyLimits
from policies.spend import PICO, usd

if TYPE_CHECKING:
    from orchestrator.config.load import Config

ConfigFile = Annotated[Path, Parameter(name=["--config", "-c"], help="The gateway's configuration file.")]
Name = Annotated[str, Parameter(help="Whose key it is; metrics, limits and reports go by this name.")]
Count = Annotated[
    int, Parameter(metavar="N", converter=shared.whole, validator=validators.Number(gte=0, lte=10**12))
]

_WITHIN: Final = "Gateways take it up within a second; a restart is not needed."


def new(
    name: Name,
    /,
    *,
    config: ConfigFile,
    models: Annotated[
        str,
        Parameter(
            metavar="NAMES",
            help="Names of models that it may ask for, with commas between; patterns as small-* are too. "
            "Default: all.",
        ),
    ] = "",
    requests_per_minute: Annotated[Count, Parameter(help="Requests in any minute; 0 for no limit.")] = 0,
    tokens_per_minute: Annotated[
        Count, Parameter(help="Tokens in any minute, of prompts and answers; 0 for no limit.")
    ] = 0,
    in_flight: Annotated[Count, Parameter(help="Requests at one time; 0 for no limit.")] = 0,
    usd_per_day: Annotated[
        str | None, Parameter(metavar="USD", help="US dollars a day (UTC). Default: no limit.")
    ] = None,
    expires: Annotated[
        str | None,
        Parameter(metavar="WHEN", help="A date (its beginning, in UTC), or a length of time such as 90d."),
    ] = None,
    output: PlainOutput = "table",
) -> int:
    """Make a key for a client of the gateway and print it, this once.

    The file of keys (gateway.keys_file) gets its SHA-256 alone: who loses a key needs a new one.

    For example:
      orchestrator keys new team-a --config pool.toml
      orchestrator keys new nightly --models "chat,small-*" --usd-per-day 25 -c pool.toml
      orchestrator keys new ci --expires 90d -c pool.toml -o json | jq -r .key
    """
    from cloud.clock import SystemClock
    from orchestrator.gateway.accounts import key_edit
    from orchestrator.gateway.accounts.key_format import name_fault

    settings, now = shared.read_config(config, role="client"), SystemClock().now()
    if fault := name_fault(name):
        raise CommandError(f"{name!r} cannot be the name of a key: {fault}", shared.USAGE)
    secret = key_edit.generate()
    key = key_edit.made(
        name,
        secret,
        now=now,
        models=tuple(filter(None, (each.strip() for each in models.split(",")))) or ALL_MODELS,
        limits=KeyLimits(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            in_flight=in_flight,
            usd_per_day=None if usd_per_day is None else _dollars(usd_per_day),
        ),
        expires=None if expires is None else _moment(expires, now),
    )
    _warn_of_unserved(settings, key)
    with _named_faults(file := _file_of(settings)):
        try:
            key_edit.add(file, key, _waiting)
        except FileExistsError:
            raise CommandError(
                f"there is a key {name} already; take another name, also where that one is revoked: "
                "what it used is kept under it"
            ) from None
    if output == "json":
        view = _view(key, now)
        shared.print_json({"schema": "new-key/1", "file": str(file), "key": secret, "made": view})
        return shared.OK
    print(secret, flush=True)
    print(f"Keep it: it is nowhere else, and {file} has its SHA-256 alone. {_WITHIN}", file=sys.stderr)
    return shared.OK


def list_keys(*, config: ConfigFile, output: PlainOutput = "table") -> int:
    """List the keys of the gateway's clients: what each may ask for, its limits, what it used today.

    For example:
      orchestrator keys list --config pool.toml
      orchestrator keys list -c pool.toml -o json | jq -r '.keys[] | select(.state == "valid").name'
    """
    from cloud.clock import SystemClock
    from orchestrator.gateway.accounts import key_edit

    settings, now = shared.read_config(config, role="client"), SystemClock().now()
    with _named_faults(file := _file_of(settings)):
        keys = key_edit.read_file(file)
    used, uses = _used_today(settings, now), _used_now(settings)
    rows: list[ListedKeyView] = [
        {
            **_view(key, now),
            "today": None if used is None else used.get(key.name, _NOTHING),
            "now": None if uses is None else uses.get(key.name, _NOTHING_NOW),
        }
        for key in keys.values()
    ]
    if output == "json":
        shared.print_json({"schema": "keys/1", "file": str(file), "keys": rows})
        return shared.OK
    if not rows:
        print(f"{file} has no keys, so nobody is let in. Next: orchestrator keys new NAME --config {config}")
        return shared.OK
    from orchestrator.render.keys import key_table

    shared.print_text(key_table(rows, shared.look(output)))
    return shared.OK


def revoke(name: Name, /, *, config: ConfigFile, output: PlainOutput = "table") -> int:
    """Have a key hold no longer. What its client has begun goes on to its end.

    The key stays in the file, so that its client learns why it is refused.

    For example:
      orchestrator keys revoke team-a --config pool.toml
    """
    from cloud.clock import SystemClock
    from orchestrator.config.errors import meant
    from orchestrator.gateway.accounts import key_edit

    settings, now = shared.read_config(config, role="client"), SystemClock().now()
    with _named_faults(file := _file_of(settings)):
        try:
            was = key_edit.revoke(file, name, now, _waiting).state(now)
        except KeyError:
            guess = meant(name, key_edit.read_file(file))
            raise CommandError(f"there is no key {name!r} in {file}{guess}") from None
    if output == "json":
        view = {"schema": "revoked-key/1", "file": str(file), "name": name, "was": was.value}
        shared.print_json(view)
    elif was.value == "revoked":
        print(f"{name} was revoked before.")
    else:
        print(f"{name} is revoked. {_WITHIN}")
    return shared.OK


def _file_of(config: Config) -> Path:
    if config.gateway.keys_file is None:
        raise CommandError(
            "the configuration names no file of keys, so the gateway asks for none; write "
            'keys_file = "{state_dir}/keys.toml" under [gateway], make a key for every client, then '
            "`orchestrator gateway --config FILE --replace`"
        )
    return config.gateway.keys_file


@contextmanager
def _named_faults(file: Path) -> Iterator[None]:
    """Faults of the file as errors of the command. Nothing was changed then."""
    from orchestrator.gateway.accounts.key_format import KeyFileError

    try:
        yield
    except KeyFileError as error:
        raise CommandError(f"{file} {error}; nothing was changed") from None
    except FileNotFoundError:
        where = f"there is no file {file}" if file.parent.is_dir() else f"there is no directory {file.parent}"
        raise CommandError(f"{where}; nothing was changed") from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CommandError(
            f"{file} cannot be used ({why}); nothing was changed. Who changes it must own it, as root does"
        ) from None


def _waiting() -> None:
    print("waiting for another command that changes the file of keys", file=sys.stderr)


def _warn_of_unserved(config: Config, key: ClientKey) -> None:
    from orchestrator.config.checks.keys import unserved_models

    if key.asks_all:
        return
    names = {name for route in config.routes for name in route.models}
    if unserved := unserved_models(names, config.pools.values(), key.models):
        print(f"warning: nothing serves {', '.join(map(repr, unserved))}", file=sys.stderr)


def _dollars(text: str) -> int:
    try:
        return usd(text.removeprefix("$"))
    except ValueError as error:
        raise CommandError(f"--usd-per-day: {error}", shared.USAGE) from None


def _moment(text: str, now: float) -> float:
    """When a key expires, in seconds since 1970."""
    try:
        found = _date(text) if text[:4].isdigit() and "-" in text else now + parse_duration(text)
    except ValueError:
        raise CommandError(
            f"--expires: {text!r} is neither a date such as 2027-01-31, nor a time in UTC such as "
            '2027-01-31T08:00Z, nor a length of time such as "90d"',
            shared.USAGE,
        ) from None
    if found <= now:
        raise CommandError(f"--expires: {text} is past, and the key would hold for nobody", shared.USAGE)
    return found


def _date(text: str) -> float:
    """Raises ValueError."""
    if "T" not in text:
        return datetime.combine(date.fromisoformat(text), time(), UTC).timestamp()
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("no offset")
    return found.timestamp()


_NOTHING: Final[KeyUseView] = {"requests": 0, "tokens_in": 0, "tokens_out": 0}


def _used_today(config: Config, now: float) -> Mapping[str, KeyUseView] | None:
    """What each key used since midnight (UTC); None where that is not known."""
    from orchestrator.gateway.accounts.usage_file import Unusable, read_usage

    hour = int(now // 3600)
    file = config.gateway.usage_file
    try:
        rows = read_usage(file, hour - hour % 24, hour + 1) if file.exists() else None
    except (Unusable, OSError):
        rows = None
    if rows is None:
        return None
    used: dict[str, KeyUseView] = {}
    for row in rows:
        sums = used.setdefault(row.key, {**_NOTHING})
        sums["requests"] += row.requests
        sums["tokens_in"] += row.fresh + row.cached + row.written
        sums["tokens_out"] += row.output
    return used


_NOTHING_NOW: Final[KeyNowView] = {"requests": 0, "tokens": 0, "in_flight": 0, "usd_today": 0.0}


def _used_now(config: Config) -> Mapping[str, KeyNowView] | None:
    """What each key with limits uses of them; None where that is not known."""
    from cloud.clock import SystemClock
    from orchestrator.gateway.accounts.use_now import use_now
    from orchestrator.gateway.spend_file import Unusable

    try:
        found = use_now(config.gateway.usage_file, config.gateway.spend_file, SystemClock())
    except (Unusable, OSError):
        return None
    return {
        key: {
            "requests": use.requests,
            "tokens": use.tokens,
            "in_flight": use.in_flight,
            "usd_today": use.usd / PICO,
        }
        for key, use in found.items()
    }


def _view(key: ClientKey, now: float) -> KeyView:
    limits = key.limits
    return {
        "name": key.name,
        "state": key.state(now).value,
        "hint": key.hint,
        "models": list(key.models),
        "limits": {
            "requests_per_minute": limits.requests_per_minute or None,
            "tokens_per_minute": limits.tokens_per_minute or None,
            "in_flight": limits.in_flight or None,
            "usd_per_day": None if limits.usd_per_day is None else float(Decimal(limits.usd_per_day) / PICO),
        },
        "created": key.created or None,
        "expires": key.expires,
        "revoked": key.revoked,
    }
