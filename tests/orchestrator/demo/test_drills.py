"""What the demo takes, and when: by the share of its time, whom it costs most, and nobody twice."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cloud.errors import CloudError, NotFound
from orchestrator.demo.drills import UNANNOUNCED, Drills


class PlayedCloud:
    """Counts what is asked of it; a node that was taken is gone from the pool."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuses = False
        self.taken: set[str] = set()
        self.nodes = {f"s{i}": self._node(f"s{i}", "spot") for i in range(40)}
        self.nodes |= {f"o{i}": self._node(f"o{i}", "on-demand") for i in range(3)}

    @staticmethod
    def _node(name: str, market: str) -> dict[str, Any]:
        return {
            "id": name,
            "market": market,
            "attached": True,
            "healthy": True,
            "conditions": [],
            "in_flight": 1,
        }

    async def read(self, path: str) -> bytes:
        assert path == "/admin/statistics"
        told = [order for call, order in self.calls if call == "reclaim" and "notice_s" not in order]
        return orjson.dumps({"preemptions_with_notice": len(told)})

    async def admin(self, call: str, body: bytes) -> None:
        if self.refuses:
            raise CloudError("not now")
        order = orjson.loads(body)
        if order["node"] in self.taken:
            raise NotFound("it is already being reclaimed")
        self.calls.append((call, order))
        if call == "reclaim":
            del self.nodes[order["node"]]

    @property
    def pool(self) -> Any:
        return {"nodes": list(self.nodes.values())}

    def made(self, call: str, **order: Any) -> list[str]:
        return [o["node"] for c, o in self.calls if c == call and order.items() <= o.items()]


async def played(cloud: PlayedCloud, drills: Drills, steps: int = 200) -> None:
    for step in range(steps + 1):
        await drills.step(step / steps, cloud.pool)


def drilled(cloud: PlayedCloud, **settings: Any) -> Drills:
    return Drills(cloud, **{"noticed": 8, "kills": 0, "seed": 1, **settings})  # type: ignore[arg-type]


async def test_five_vanish_without_a_word_and_the_rest_is_told() -> None:
    cloud = PlayedCloud()
    drills = drilled(cloud)
    await played(cloud, drills)
    assert len(cloud.made("reclaim", notice_s=0)) == UNANNOUNCED == 5
    assert len(cloud.made("reclaim")) == 5 + 8 == drills.asked
    assert all(node.startswith("s") for node in cloud.made("reclaim"))
    assert cloud.made("kill-engine") == []


async def test_engines_are_killed_on_request_and_none_twice() -> None:
    cloud = PlayedCloud()
    drills = drilled(cloud, kills=10)
    await played(cloud, drills)
    killed = cloud.made("kill-engine")
    assert len(killed) == len(set(killed)) == 10 == drills.killed
    assert not set(killed) & set(cloud.made("reclaim"))


async def test_the_node_with_the_most_requests_is_hit() -> None:
    cloud = PlayedCloud()
    cloud.nodes["s7"]["in_flight"], cloud.nodes["s9"]["in_flight"] = 5, None
    await drilled(cloud).step(0.2, cloud.pool)
    assert cloud.made("reclaim", notice_s=0) == ["s7"]


@pytest.mark.parametrize(
    "change", [{"attached": False}, {"healthy": False}, {"conditions": ["noticed"]}], ids=str
)
async def test_what_does_not_serve_is_left_alone(change: dict[str, Any]) -> None:
    cloud = PlayedCloud()
    for node in cloud.nodes.values():
        node.update(change)
    drills = drilled(cloud, kills=10)
    await played(cloud, drills)
    assert (cloud.calls, drills.asked, drills.killed) == ([], 0, 0)


async def test_the_last_engine_that_serves_is_not_killed() -> None:
    cloud = PlayedCloud()
    cloud.nodes = {"o0": cloud.nodes["o0"]}
    await played(cloud, drilled(cloud, kills=10))
    assert cloud.calls == []


async def test_what_a_cloud_refused_is_made_up_for() -> None:
    cloud = PlayedCloud()
    drills = drilled(cloud, kills=3)
    cloud.refuses = True
    for step in range(80):
        await drills.step(step / 100, cloud.pool)
    cloud.refuses = False
    for _ in range(20):
        await drills.step(1.0, cloud.pool)
    assert len(cloud.made("reclaim", notice_s=0)) == 5
    assert drills.killed == 3


async def test_nothing_is_taken_at_the_very_beginning() -> None:
    cloud = PlayedCloud()
    await drilled(cloud, kills=10).step(0.01, cloud.pool)
    assert cloud.calls == []


async def test_one_that_the_market_takes_already_is_passed_over() -> None:
    cloud = PlayedCloud()
    cloud.nodes["s7"]["in_flight"], cloud.nodes["s9"]["in_flight"] = 9, 5
    cloud.taken = {"s7"}
    drills = drilled(cloud)
    for _ in range(2):
        await drills.step(0.2, cloud.pool)
    assert cloud.made("reclaim", notice_s=0) == ["s9"]
    assert drills.asked == 1
