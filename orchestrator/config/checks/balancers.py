"""What must hold between the balancers of pools: own names, the keys of their kind, no place twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from cloud.balancers.kinds import KINDS
from orchestrator.config.errors import Found, Key, dotted
from orchestrator.config.tables.balancer import NGINX_SETTLES, BalancerTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown

_COMMON: Final = frozenset({"kind", "name", "wait"})
_LONGEST_WAIT: Final = 0.5
"""Share of daemon.call_timeout that a drain may wait for a newcomer."""


def balancers_errors(pools: Mapping[str, PoolConfig], call_timeout: float) -> Iterator[Found]:
    """What cannot be as it is written."""
    taken: dict[tuple[str, ...], Key] = {}
    for name, pool in pools.items():
        titles: dict[str, Key] = {}
        for number, table in enumerate(pool.balancer):
            at: Key = ("pool", name, "balancer", number)
            if table.title in titles:
                yield (
                    (*at, "name"),
                    f"{shown(table.title)} is {dotted(titles[table.title])} already; write another",
                )
            titles.setdefault(table.title, at)
            yield from _keys(at, table)
            if table.kind == "nginx" and pool.as_pool(name).drain.settle < NGINX_SETTLES:
                yield (
                    ("pool", name, "drain", "settle"),
                    f"{pool.drain.settle:g} s is too short with nginx, whose old workers may take requests "
                    f"for {NGINX_SETTLES:g} s after a reload; write that or more, or leave it out",
                )
            if table.wait > _LONGEST_WAIT * call_timeout:
                yield (
                    (*at, "wait"),
                    f"is more than half of daemon.call_timeout ({call_timeout:g} s), within which the whole "
                    "write must end; write less, or raise call_timeout",
                )
            for place in _places(name, table):
                if place in taken:
                    yield at, f"holds the targets of {dotted(taken[place])} already; each needs its own place"
                taken.setdefault(place, at)


def _keys(at: Key, table: BalancerTable) -> Iterator[Found]:
    kind = KINDS[table.kind]
    for key in kind.needs:
        if not getattr(table, key):
            yield (*at, key), f"is missing, and {kind.title} is not reached without it"
    for key in sorted(table.model_fields_set - _COMMON - {*kind.needs, *kind.takes}):
        yield (*at, key), f"is no key of {kind.title}; leave it out"
    if table.kind == "gateway" and table.url:
        if urlsplit(table.url).scheme != "https":
            yield (*at, "url"), "must begin with https://: a token would cross the network in the clear"
        if table.token_file is None:
            yield (*at, "token_file"), "is missing, and a gateway on another host takes nothing without it"
    if table.url and urlsplit(table.url).scheme not in ("http", "https"):
        yield (*at, "url"), f'{shown(table.url)} is no address; write text such as "http://127.0.0.1:9901"'


def _places(pool: str, table: BalancerTable) -> Iterator[tuple[str, ...]]:
    """What no two balancers may share."""
    backend = table.backend or pool
    if table.kind == "gateway" and not table.url:
        yield ("gateway", pool)
    elif table.url:
        yield ("url", table.url.rstrip("/"), backend)
    if table.socket is not None:
        yield ("socket", str(table.socket), backend)
    if table.file is not None:
        yield ("file", str(table.file))
