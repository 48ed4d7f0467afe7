"""What a pool asks of its provider of machines that this cannot do, and what of it is unproven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloud.proof import MEANING
from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.pool import PoolConfig, notice_of
from orchestrator.units import format_duration

_SLOWEST_LIST: Final = 30.0
"""Seconds between two lists of a provider that is asked for every machine by itself."""
_SHORTEST_CALL: Final = 30.0
"""Seconds that one list of it gets at least."""


def trait_errors(at: Key, pool: PoolConfig, daemon: DaemonConfig) -> Iterator[Found]:
    """What is asked of a provider that it cannot do. `at` is the path of the pool, which has one cloud."""
    (row,), traits = pool.cloud.rows, pool.cloud.traits
    if pool.standby.stopped and not traits.stops:
        yield (
            (*at, "standby", "stopped"),
            f"is {pool.standby.stopped}, and {row.title} cannot stop a machine and start it again; write "
            "standby.hot, which keeps machines that run",
        )
    if pool.mix == "adaptive" and not pool.cloud.here and notice_of(pool) > traits.notice:
        gives = f"gives {format_duration(traits.notice)}" if traits.notice else "gives none"
        yield (
            (*at, "starts", "notice"),
            f"is {format_duration(pool.starts.notice)}, and {row.title} {gives}: the adaptive mix would "
            "count on standbys that come too late; leave it out",
        )
    if not traits.lists_at_once and daemon.poll_instances < _SLOWEST_LIST:
        yield (
            ("daemon", "poll_instances"),
            f"{format_duration(daemon.poll_instances)} is too often for {row.title}, which is asked for "
            "every machine by itself: calls would grow with the pool; write "
            f'"{format_duration(_SLOWEST_LIST)}" or more',
        )
    if not traits.lists_at_once and daemon.call_timeout < _SHORTEST_CALL:
        yield (
            ("daemon", "call_timeout"),
            f"{format_duration(daemon.call_timeout)} is too short for {row.title}: a list asks for every "
            f'machine by itself and would be given up; write "{format_duration(_SHORTEST_CALL)}" or more',
        )
    if row.proved.needs_consent and not pool.accept_unproven:
        yield (
            (*at, "cloud", "kind"),
            f"{row.title} is proved by *{row.proved.proof} only*: {MEANING[row.proved.proof]}; write "
            "accept_unproven = true in the pool where that is meant",
        )


def trait_warnings(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """Drains for which the provider's notice is too short, for a pool of one cloud."""
    notice, drain_time = pool.cloud.traits.notice, pool.drain.budget + pool.drain.margin
    if not notice:
        yield (
            (*at, "drain", "budget"),
            f"{pool.cloud.title} takes spot machines without a notice: requests on them are cut, and "
            "only what the gateway sends again or continues elsewhere is whole",
        )
    elif drain_time > notice:
        yield (
            (*at, "drain", "budget"),
            f"budget and margin need {format_duration(drain_time)}, but an interruption notice gives "
            f"{format_duration(notice)} ({pool.cloud.title}); drains will be cut short, so lower one of them",
        )
