"""Whether keys identify the gateway's clients, and whether those keys are of use."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from cloud.clock import SystemClock
from cloud.engines.flags import adapters
from orchestrator.config.checks.listeners import takes_requests
from orchestrator.config.errors import Found
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import unreadable
from orchestrator.gateway.accounts.key_format import KeyFileError, content, read_keys
from orchestrator.units import shown
from policies.keys import ClientKey, KeyState

_AT: Final = ("gateway", "keys_file")
_SHOWN: Final = 5  # names in a sentence


def key_errors(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """A file that no gateway would take, and engines that would refuse what the gateway sends them."""
    file = parsed.gateway.keys_file
    if file is None:
        return
    for name, pool in parsed.pool.items():
        asks = takes_requests(pool) and pool.engine.api_key_file is not None
        if asks and pool.gateway.api_key_file is None:
            yield (
                ("pool", name, "engine", "api_key_file"),
                "the engine asks for a key and would get none: with keys_file those of clients end at the "
                "gateway; name the same file in gateway.api_key_file",
            )
    if role == "any" and not unreadable(file):
        _, fault = _read(file)
        if fault:
            yield _AT, f"{file} {fault}"


def key_warnings(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """What keeps clients out, or lets more of them in than is meant. The gateway starts all the same: it
    refuses everybody until the file can be taken.
    """
    file = parsed.gateway.keys_file
    if file is None or role not in ("gateway", "any"):
        return
    if fault := unreadable(file):
        yield _AT, f"{fault}; until then every request is refused (make a key with `orchestrator keys new`)"
        return
    keys, fault = _read(file)
    if fault:
        yield _AT, f"{file} {fault}; until it is put right every request is refused"
        return
    yield from ((_AT, text) for text in _mode_faults(file))
    now = SystemClock().now()
    held = [key for key in keys if key.state(now) is KeyState.VALID]
    if not held:
        yield _AT, f"{file} has no key that is in force: every request is refused (`orchestrator keys new`)"
    if expired := [key.name for key in keys if key.state(now) is KeyState.EXPIRED]:
        yield _AT, f"keys that have expired: {_some(expired)}; revoke them, or make new ones"
    for key in held:
        names = {name for route in parsed.route for name in route.models}
        if unserved := unserved_models(names, parsed.pool.values(), key.models):
            yield (
                _AT,
                f"key {key.name} may ask for {_some(map(shown, unserved))}, which nothing serves; "
                "correct its models",
            )


def unserved_models(names: Iterable[str], pools: Iterable[PoolConfig], patterns: Iterable[str]) -> list[str]:
    """Those patterns of a key that match no name which clients can ask for: `names` of routes, and of what
    the pools serve.
    """
    known = {*names}
    for pool in pools:
        known |= {pool.served_name, *adapters(pool.engine.args), *pool.adapters}
    return [each for each in patterns if not any(fnmatchcase(name, each) for name in known)]


def _read(file: Path) -> tuple[list[ClientKey], str]:
    """The keys, and why the file cannot be taken."""
    try:
        return list(read_keys(content(file)).values()), ""
    except KeyFileError as error:
        return [], str(error)
    except OSError as error:
        return [], f"cannot be read: {error.strerror or error}"


def _mode_faults(file: Path) -> Iterator[str]:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield f"{file} can be changed by other users, who could let themselves in; close it with chmod 640"
    elif mode & stat.S_IRWXO:
        yield f"{file} can be read by every user; close it with chmod 640"


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return f"{', '.join(every[:_SHOWN])}{more}"
