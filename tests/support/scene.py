"""One instant of a pool, written down node by node, and what the policies make of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from policies.actions import ActionKind, Cause, Plan
from policies.decide import decide
from policies.fleet import Fleet
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Pool,
    Target,
    TargetPhase,
    TargetState,
    World,
)
from policies.plan_builder import Turn as DecisionTurn
from policies.records import DrainRecord, Intent, LastPrice, Memory, NodeRecord
from tests.support.toy_pools import place


class Scene:
    """One instant of a pool, written down node by node. `now` is 10,000 s."""

    def __init__(self, pool: Pool | None = None, **memory: Any) -> None:
        self.pool = pool if pool is not None else Pool(name="p", replicas=4)
        self.now = 10_000.0
        self.records: dict[str, NodeRecord] = {}
        self.instances: dict[str, Instance] = {}
        self.engines: dict[str, EngineReading] = {}
        self.held: dict[str, TargetPhase] = {}
        self.shown: dict[str, Target] = {}
        self.offerings = [
            Offering(placement=place(zone, market), price=1.0 if market is Market.SPOT else 3.0)
            for market in Market
            for zone in "abc"
        ]
        self.fields: dict[str, Any] = {
            "replicas": self.pool.replicas,
            "whole_at": 9_000.0,
            "ready_once": True,
            **memory,
        }
        self.settings: dict[str, Any] = {}

    def node(
        self,
        node: str,
        market: Market = Market.SPOT,
        zone: str = "a",
        kind: str = "gpu",
        *,
        ready: bool = True,
        age: float = 1000.0,
        state: InstanceState = InstanceState.RUNNING,
        serving: bool | None = None,
        target: TargetPhase | None = None,
        silent_for: float | None = None,
        probed: bool = True,
        listed: bool = True,
        vouched: bool | None = None,
        in_flight: int = 0,
        price: float | None = None,
        **record: Any,
    ) -> Scene:
        """A node that runs, is ready and serves, unless told otherwise.

        `vouched`: the balancer finds it healthy; by default one that is silent is not.
        """
        began = self.now - age
        price = price if price is not None else (1.0 if market is Market.SPOT else 3.0)
        base = NodeRecord(
            id=node,
            token=f"{self.pool.name}/7/{node}",  # this daemon launched it
            placement=place(zone, market, kind),
            launched_at=began,
            started_at=began,
            price=price,
            address=f"{node}:1",
            ready_at=began + 60.0 if ready else None,
        )
        self.records[node] = replace(base, **record)
        if listed:
            self.instances[node] = Instance(
                id=node,
                pool=self.pool.name,
                token=self.records[node].token,
                placement=base.placement,
                state=state,
                address=base.address,
                launched_at=began,
                price=price,
                standby=self.records[node].standby,
            )
        if probed and state is InstanceState.RUNNING:
            silent = silent_for is not None or not ready
            self.engines[node] = EngineReading(
                node=node,
                at=self.now,
                ready=ready,
                ok=not silent,
                failing_since=self.now - (silent_for or age) if silent else None,
                running=in_flight,
                failure="connection refused" if silent else "",
            )
        if serving is None:
            serving = ready and state is InstanceState.RUNNING and self.records[node].drain is None
        held = TargetPhase.ACTIVE if serving else target
        self.held.pop(node, None)
        self.shown.pop(node, None)
        if held is not None:
            self.held[node] = held
            found = TargetState.HEALTHY if vouched or (vouched is None and silent_for is None) else None
            shown = (found or TargetState.UNHEALTHY) if serving else TargetState.DRAINING
            sick = self.now - (silent_for or age) if shown is TargetState.UNHEALTHY else None
            self.shown[node] = Target(
                id=node, address=base.address, state=shown, in_flight=in_flight, failing_since=sick
            )
        return self

    def nodes(self, count: int, market: Market = Market.SPOT, prefix: str = "", **more: Any) -> Scene:
        """Several nodes named s0, s1 ... or o0, o1 ..., spread over the zones."""
        prefix = prefix or ("s" if market is Market.SPOT else "o")
        for i in range(count):
            self.node(f"{prefix}{i}", market, "abc"[i % 3], **more)
        return self

    def notice(self, node: str, lead: float | None = 120.0, **more: Any) -> Notice:
        """A notice for a node, already heard."""
        said = Notice(
            **{
                "id": f"n-{node}",
                "kind": NoticeKind.INTERRUPTION,
                "node": node,
                "deadline": None if lead is None else self.now + lead,
                "source": "feed",
                "confidence": Confidence.CONFIRMED,
                "seen_at": self.now,
                **more,
            }
        )
        record = self.records[node]
        self.records[node] = replace(record, notices=(*record.notices, said))
        return said

    def drain(self, node: str, cause: Cause, *, since: float = 5.0, left: float = 25.0) -> Scene:
        """The node has been draining for `since` seconds and has `left` of them."""
        self.records[node] = replace(
            self.records[node],
            drain=DrainRecord(
                since=self.now - since, deadline=self.now + left, cause=cause, reason=f"because {cause}"
            ),
            detached_at=self.now - since + 0.1,
        )
        self.held[node] = TargetPhase.DRAINING
        shown = self.shown.get(node)
        if shown is not None:
            self.shown[node] = replace(shown, state=TargetState.DRAINING)
        return self

    def launching(self, token: str, market: Market = Market.SPOT, *, ago: float = 1.0, **more: Any) -> Scene:
        """A launch that is open."""
        known = Intent(
            **{
                "token": token,
                "kind": ActionKind.LAUNCH,
                "node": "",
                "at": self.now - ago,
                "asked_at": self.now - ago,
                "placement": place("a", market),
                "price": 1.0 if market is Market.SPOT else 3.0,
                "cause": Cause.SHORT,
                "reason": "missing",
                **more,
            }
        )
        self.fields["intents"] = {**self.fields.get("intents", {}), token: known}
        return self

    def asked(self, node: str, kind: ActionKind, *, ago: float = 1.0, **more: Any) -> Scene:
        """A call on a node that is open."""
        token = f"{node}:{kind}"
        known = Intent(token=token, kind=kind, node=node, at=self.now - ago, asked_at=self.now - ago, **more)
        self.fields["intents"] = {**self.fields.get("intents", {}), token: known}
        return self

    @property
    def memory(self) -> Memory:
        """What is remembered."""
        return Memory(
            nodes=dict(self.records),
            **{
                "prices": {
                    o.placement: LastPrice(at=self.now, price=o.price, part="sim")
                    for o in self.offerings
                    if o.price is not None
                },
                "targets": {"gw": dict(self.held)},
                "applied_at": {"gw": self.now - 50.0},
                **self.fields,
            },
        )

    @property
    def world(self) -> World:
        """What is seen."""
        return World(
            **{
                "now": self.now,
                "regions": {"": Observed(value=tuple(self.instances.values()), at=self.now)},
                "engines": dict(self.engines),
                "balancers": {"gw": Observed(value=tuple(self.shown.values()), at=self.now)},
                "offerings": {"sim": Observed(value=tuple(self.offerings), at=self.now)},
                "epoch": 7,
                **self.settings,
            }
        )

    @property
    def fleet(self) -> Fleet:
        """The nodes as the policies see them."""
        return Fleet.of(self.pool, self.world, self.memory)

    def turn(self) -> DecisionTurn:
        """A decision in the making."""
        return DecisionTurn(self.pool, self.world, self.memory, self.fleet)

    def plan(self) -> Plan:
        """The whole decision."""
        return decide(self.pool, self.world, self.memory)


def noticed(pool: Pool, world: World, memory: Memory) -> dict[str, Notice]:
    """By node, the notices that are believed."""
    return {n.id: n.notice for n in Fleet.of(pool, world, memory).nodes if n.notice is not None}
