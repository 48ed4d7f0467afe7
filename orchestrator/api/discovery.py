"""What Prometheus should scrape on the nodes, as its HTTP service discovery asks for it.

https://prometheus.io/docs/prometheus/latest/http_sd/ has the format: a list of groups of targets with labels.
"""

from __future__ import annotations

from orchestrator.loop.loop import Snapshot
from orchestrator.views.api import ScrapeView
from policies.model import Phase
from policies.node import Node

_RUNNING = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.TERMINATING})


def scrape_targets(snapshot: Snapshot, port: int | None) -> list[ScrapeView]:
    """One group for each node, ordered by id.

    Without a port the engines that were ready, so that one that still loads its model does not count as down.
    With a port that port of every machine that runs, where an exporter may listen.
    """
    pool = snapshot.fleet.pool.name
    chosen = [n for n in snapshot.fleet.nodes if n.address and _scraped(n, engine=port is None)]
    return [
        ScrapeView(
            targets=[node.address if port is None else f"{node.address.rpartition(':')[0]}:{port}"],
            labels={
                "pool": pool,
                "node": node.id,
                "market": str(node.placement.market),
                "zone": node.placement.zone,
                "instance_type": node.placement.instance_type,
            },
        )
        for node in sorted(chosen, key=lambda n: n.id)
    ]


def _scraped(node: Node, *, engine: bool) -> bool:
    if engine:
        return node.ready_at is not None and node.phase in (Phase.READY, Phase.DRAINING)
    return node.phase in _RUNNING
