"""What must hold between several pools of one file: who owns what, and what they may have together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

from orchestrator.config.checks.clouds import CHECKS
from orchestrator.config.checks.costs import stated_offerings
from orchestrator.config.errors import Found
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.gateway import PROCESS_KEYS
from orchestrator.units import shown
from policies import bill

_NAME: Final = re.compile(r"[a-z0-9-]{1,24}")


def pools_errors(parsed: ConfigFile) -> Iterator[Found]:
    """What would have two pools take each other's nodes, targets, notices or sockets."""
    if not parsed.pool and not any(backend.provider for route in parsed.route for backend in route.to):
        yield (
            ("pool",),
            "holds no pool; write one table such as [pool.llama] with replicas = 10, or a [[route]] to a "
            "[provider.NAME]",
        )
    for name in parsed.pool:
        if not _NAME.fullmatch(name):
            yield (
                ("pool", name),
                f"{shown(name)} cannot be a pool's name; use 1 to 24 of the characters a-z, 0-9 and -",
            )
    if len(parsed.pool) == 1:
        yield from _said_twice(parsed)
    else:
        yield from _process_keys(parsed)
        for checks in CHECKS.values():
            yield from checks.among(parsed)


def budget_warnings(parsed: ConfigFile) -> Iterator[Found]:
    """A budget that cannot hold every pool's floor, or leaves no room to replace a node."""
    wanted = [pool.as_pool(name) for name, pool in parsed.pool.items()]
    floors = {pool.name: math.ceil(pool.on_demand_floor / pool.largest) for pool in wanted}
    nodes, cap = parsed.budget.nodes, parsed.budget.spend_per_hour
    if nodes is not None and nodes < sum(floors.values()):
        yield (
            ("budget", "nodes"),
            f"{nodes} is below the on-demand floors together, {sum(floors.values())} nodes "
            f"({_each(floors)}): pools of low priority stay below their floor; raise it or lower a floor",
        )
    whole = sum(math.ceil((pool.replicas + pool.standby.hot) / pool.largest) for pool in wanted)
    if nodes == whole > sum(floors.values()):
        yield (
            ("budget", "nodes"),
            f"{nodes} is what the pools want and not one more, so that a pool whose spot node was replaced "
            f"on demand has no room to go back to spot; write {nodes + 1} or more",
        )
    costs = {
        pool.name: bill.floor(pool, bill.prices_of(pool, stated_offerings(parsed.pool[pool.name])))
        for pool in wanted
    }
    known = {name: cost for name, cost in costs.items() if cost is not None}
    if cap is not None and cap < sum(known.values()):
        yield (
            ("budget", "spend_per_hour"),
            f"${cap:,.2f} an hour is below what the on-demand floors cost together, "
            f"${sum(known.values()):,.2f} ({_each({n: f'${c:,.2f}' for n, c in known.items()})}): pools of "
            "low priority stay below their floor; raise it or lower a floor",
        )


def _each(parts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {part}" for name, part in parts.items())


def _process_keys(parsed: ConfigFile) -> Iterator[Found]:
    for name, pool in parsed.pool.items():
        for key in sorted(PROCESS_KEYS & pool.gateway.model_fields_set):
            yield (
                ("pool", name, "gateway", key),
                "belongs to the gateway's process, which several pools share; write it in [gateway]",
            )
    if "targets_file" in parsed.gateway.model_fields_set:
        yield (
            ("gateway", "targets_file"),
            "each pool has a file of its own; write it in [pool.NAME.gateway], or leave it out",
        )


def _said_twice(parsed: ConfigFile) -> Iterator[Found]:
    """Keys of the process that the only pool has, and [gateway] too."""
    (name,) = parsed.pool
    written = parsed.pool[name].gateway.model_fields_set & parsed.gateway.model_fields_set
    for key in sorted(PROCESS_KEYS & written):
        yield ("pool", name, "gateway", key), "stands in [gateway] too; write it once"
