"""A state directory as daemon and gateways leave it, and the configuration that goes with it."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.config.load import Config, build_config
from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.gateway.spend_file import Claim, Settled, SpendFile, Ticket
from orchestrator.journal.sqlite import SqliteStore
from policies.economics import BaselineHour, Charge
from policies.model import Market, Placement
from policies.spend import PICO, Usage

HOUR = 497_288  # 08:00 of 2026-09-24
NOW = (HOUR + 4) * 3600.0
PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


def config(directory: Path, **daemon: str) -> Config:
    return build_config(
        {
            "daemon": {"state_dir": str(directory), **daemon},
            "pool": {
                "chat": {"replicas": 2, "engine": {"served_name": "llama"}},
                "embed": {"replicas": 1, "engine": {"served_name": "e"}},
            },
            "provider": {
                "claude": {
                    "kind": "anthropic", "usd_per_day": "5", "api_key_file": "{credentials}/key",
                    "price": {"m": {"input": "3", "output": "15"}},
                }
            },
            "route": [{"models": ["a"], "to": [{"pool": "chat"}, {"provider": "claude", "model": "m"}]}],
        }
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory: two pools cost $1.50 and $0.50, the provider $0.25."""

    async def fill() -> None:
        with closing(SqliteStore.open(tmp_path / "journal.db", now=NOW, inline=True)) as store:
            for pool, usd in (("chat", 1.5), ("embed", 0.5)):
                bill = Charge(
                    node=f"{pool}-1", placement=PLACE, hour=HOUR, seconds=3600.0, usd=usd,
                    unit_seconds=3600.0, ready_unit_seconds=3000.0,
                )  # fmt: skip
                base = BaselineHour(pool=pool, hour=HOUR, on_demand_usd=2.0)
                await store.charge(pool, [bill], baseline=[base], until=NOW)

    asyncio.run(fill())
    with closing(UsageFile(tmp_path / "usage.db")) as usage:
        for key, backend in (("team-a", "pool/chat"), ("", "pool/embed")):
            usage.add([((HOUR, key, "a", backend, ""), [1, 0, 0, 1000, 0, 0, 100, 0.1, 1.0])], NOW)
    with closing(SpendFile(tmp_path / "spend.db")) as spend:
        claim = Claim(provider="claude", route="a", model="m", amount=PICO, until=NOW + 60, key="team-a")
        [ticket] = spend.apply([claim], NOW)
        assert isinstance(ticket, Ticket)
        spend.apply([Settled(ticket=ticket, amount=PICO // 4, usage=Usage(10, 0, 0, 5))], NOW)
    return tmp_path
