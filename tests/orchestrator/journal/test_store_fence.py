"""Two daemons on one journal: the one that was there first writes nothing more."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.journal.store import Superseded
from policies.economics import BaselineHour
from policies.events import DaemonStarted, PoolConfigured
from policies.memory import Memory


async def test_a_daemon_that_was_superseded_writes_nothing_more(journal: Any) -> None:
    first, second = journal.open(), journal.open()
    assert await first.next_epoch(10.0) == 10
    await first.append("p", [DaemonStarted(at=10.0, epoch=10)])
    assert await second.next_epoch(11.0) == 11
    with pytest.raises(Superseded, match=r": another daemon took over \(epoch 11, ours is 10\)"):
        await first.append("p", [PoolConfigured(at=12.0, replicas=9)])
    with pytest.raises(Superseded):
        await first.snapshot("p", Memory(replicas=9), keep_after=0.0)
    with pytest.raises(Superseded):
        await first.charge("p", [], baseline=[BaselineHour(pool="p", hour=0, on_demand_usd=1.0)], until=12.0)
    await second.append("p", [PoolConfigured(at=12.0, replicas=2)])
    assert (await second.load("p")).replicas == 2
    assert (await second.totals("p")).on_demand_usd == 0.0
    assert await second.baseline_hours(0, 1) == []
