"""One gateway for several pools: what each pool's table has from [gateway], and where a key stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.errors import Key
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.gateway import GatewayTable, SharedGatewayTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import STATE_DIR, revised


def with_gateways(parsed: ConfigFile) -> ConfigFile:
    """The same file where every pool's gateway table holds what it has from [gateway], and [gateway] what the
    only pool says. What counts as written stays as it was."""
    pools = {}
    for number, (name, pool) in enumerate(parsed.pool.items()):
        said = {key: getattr(parsed.gateway, key) for key in GatewayTable.model_fields}
        if number:
            # the first pool keeps its file, so that a second one may join while the daemon runs
            said["targets_file"] = Path(f"{STATE_DIR}/targets-{name}.json")
        said |= {key: getattr(pool.gateway, key) for key in pool.gateway.model_fields_set}
        pools[name] = revised(pool, {"gateway": revised(pool.gateway, said)})
    changes: dict[str, Any] = {"pool": pools}
    if len(pools) == 1:
        (only,) = pools.values()
        changes["gateway"] = revised(parsed.gateway, dict(only.gateway))
    return revised(parsed, changes)


def place(shared: SharedGatewayTable, pools: Mapping[str, PoolConfig], key: str, pool: str = "") -> Key:
    """Where a key of the gateway is written; where it is not, the place where it belongs.

    `pool` names the pool whose key is meant, empty for a key of the process.
    """
    if not pool and len(pools) == 1 and key in GatewayTable.model_fields:
        pool = next(iter(pools))
    written = bool(pool) and key in pools[pool].gateway.model_fields_set
    if not pool or (key in shared.model_fields_set and not written):
        return ("gateway", key)
    return ("pool", pool, "gateway", key)
