"""The whole file: its tables, and who reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import Section

Role = Literal["daemon", "gateway", "client", "any"]
"""Who reads a configuration: each process needs only its own files to be there, and its client needs none.
"any" checks all of them."""


class ConfigFile(Section):
    """The whole file."""

    daemon: DaemonConfig = Field(default=DaemonConfig(), description="The daemon itself.")
    pool: dict[str, PoolConfig] = Field(
        description="One table for each pool, named [pool.NAME], with at least replicas."
    )
