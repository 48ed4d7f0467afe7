"""What others do, as decision functions with the same signature as ours, to be compared with.

None of them knows more than our own policy: its nodes, notices, the answers to its launches, prices, the
wanted number. They ask for one node after another and see each answer before the next, as the published ones
do; they have no limits, no drains and no cloud that lies. They retry every minute, but are not woken while no
zone has room: each try would be refused.

Sources: SpotHedge is the policy of SkyServe (Mao et al., EuroSys 2025, arXiv 2411.01438), from the paper and
its artifact; round robin and even spread are the paper's baselines; the static mix is an Auto Scaling group
with a mixed instances policy, with or without capacity rebalancing (a replacement is asked for at the
notice).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from policies.actions import Action, ActionKind, Cause, Launch, Plan, Terminate
from policies.fleet import Fleet
from policies.model import Market, Offering, Phase, World
from policies.node import Node
from policies.records import Memory, intent_key

_MANY_TRIES = 10_000


@dataclass(frozen=True, slots=True)
class _View:
    """The fleet as the baselines count it. `safe`: not under notice."""

    now: float
    wanted: int
    spot: tuple[Node, ...]
    on_demand: tuple[Node, ...]
    offers: tuple[Offering, ...]
    on_demand_offer: Offering

    def safe(self) -> tuple[Node, ...]:
        """Spot nodes that are not under notice, ready or starting."""
        return tuple(n for n in self.spot if n.notice is None)

    def held(self, zone: str) -> int:
        """Safe spot nodes in a zone."""
        return sum(n.placement.zone == zone for n in self.safe())


class Baseline:
    """What all baselines share: one launch at a time, and bookkeeping of what was refused at this instant."""

    name = "baseline"

    def __init__(self) -> None:
        self._now = -1.0
        self._asked = ("", "")  # token and zone of the launch whose answer is awaited
        self._tries = self._allowed = 0
        self._refused: set[str] = set()
        self._missing = 0
        self._ended: set[str] = set()  # spot nodes that it ended itself

    def decide(self, fleet: Fleet, world: World, memory: Memory) -> Plan:
        """One step."""
        view = _view(fleet, world)
        if view.now != self._now:
            missing = max(0, self._spot_wanted(view) - self._spot_held(view))
            self._now, self._tries, self._allowed = view.now, 0, self._most_tries(missing)
            self._refused.clear()
        self._answered(memory)
        self._look(view)
        actions: list[Action] = []
        spot, base = self._spot_wanted(view), self._spot_held(view)
        self._missing = spot - base
        trimmed = _trim(view, spot)
        self._ended.update(t.node for t in trimmed)
        actions += trimmed
        if self._missing > 0 and self._tries < self._allowed:
            zone = self._choose(view, [o for o in view.offers if o.placement.zone not in self._refused])
            if zone is not None:
                launch = _launch(fleet, memory, zone)
                self._asked = (launch.token, zone.placement.zone)
                self._tries += 1
                return Plan(actions=(*actions, launch))
        actions += _set_on_demand(fleet, memory, view, self._on_demand_wanted(view))
        return Plan(actions=tuple(actions))

    def next_look(self, now: float, fleet: Fleet, plan: Plan, retry: float) -> float:  # noqa: ARG002
        """When spot is missing: as soon as a try can succeed."""
        return retry if self._missing > 0 else math.inf

    def _answered(self, memory: Memory) -> None:
        token, zone = self._asked
        if token and not any(r.token == token for r in memory.nodes.values()):
            self._refused.add(zone)
            self._bad_zone(zone)
        self._asked = ("", "")

    # -- what a baseline is ----------------------------------------------------------------------------

    def _spot_wanted(self, view: _View) -> int:
        """Spot nodes wanted now."""
        raise NotImplementedError

    def _spot_held(self, view: _View) -> int:
        """Spot nodes that count against `spot_wanted`: all of them, or those not under notice."""
        return len(view.spot)

    def _on_demand_wanted(self, view: _View) -> int:  # noqa: ARG002
        """On-demand nodes wanted now."""
        return 0

    def _choose(self, view: _View, offers: list[Offering]) -> Offering | None:
        """Where the next spot node is tried; `offers` were not refused at this instant."""
        return min(offers, key=lambda o: _spread(view, o), default=None)

    def _most_tries(self, missing: int) -> int:  # noqa: ARG002
        """Launches tried at one instant, given the nodes missing at its begin."""
        return _MANY_TRIES

    def _look(self, view: _View) -> None:
        """Look at what changed since the last step."""

    def _bad_zone(self, zone: str) -> None:
        """A launch in the zone was refused."""


class AllOnDemand(Baseline):
    """Everything on demand, in the cheapest zone."""

    name = "all on-demand"

    def _spot_wanted(self, view: _View) -> int:  # noqa: ARG002
        return 0

    def _on_demand_wanted(self, view: _View) -> int:
        return view.wanted


class RoundRobin(Baseline):
    """Spot only; missing nodes are tried zone after zone."""

    name = "spot round robin"

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def _spot_wanted(self, view: _View) -> int:
        return view.wanted

    def _choose(self, view: _View, offers: list[Offering]) -> Offering | None:  # noqa: ARG002
        offer = view.offers[self._turn % len(view.offers)]
        self._turn += 1
        return offer

    def _most_tries(self, missing: int) -> int:
        return missing


class EvenSpread(Baseline):
    """Spot only, spread evenly over zones, any zone when the emptiest has no room."""

    name = "spot even spread"

    def _spot_wanted(self, view: _View) -> int:
        return view.wanted


class StaticMix(Baseline):
    """A fixed on-demand share, the rest spot, as an Auto Scaling group keeps it: lost spot is not covered.

    `rebalance`: a replacement is asked for at the notice, before the node is gone.
    """

    def __init__(self, on_demand_share: float = 0.3, *, rebalance: bool = False) -> None:
        super().__init__()
        self._share, self._rebalance = on_demand_share, rebalance
        spot = round(100 * (1 - on_demand_share))
        self.name = f"static {spot}/{100 - spot}" + (" rebalancing" if rebalance else "")

    def _on_demand(self, view: _View) -> int:
        return math.ceil(self._share * view.wanted - 1e-9)

    def _spot_wanted(self, view: _View) -> int:
        return view.wanted - self._on_demand(view)

    def _spot_held(self, view: _View) -> int:
        return len(view.safe()) if self._rebalance else len(view.spot)

    def _on_demand_wanted(self, view: _View) -> int:
        return self._on_demand(view)


class SpotHedge(Baseline):
    """SkyServe's policy: zones that preempted are avoided, `extra` spot nodes beyond wanted, on-demand for
    what ready spot does not cover: min(N, N + extra - ready spot).

    `notices`: nodes under notice count as gone, which the published policy does not do.
    """

    def __init__(self, extra: int = 1, *, notices: bool = False, seed: int = 0) -> None:
        super().__init__()
        self._extra, self._notices = extra, notices
        self._random = random.Random(seed)  # noqa: S311
        self._active: list[str] = []
        self._preempted: list[str] = []
        self._known: dict[str, tuple[str, bool, bool]] = {}
        self.name = f"SpotHedge N={extra}" + (" hearing notices" if notices else "")

    def _spot_wanted(self, view: _View) -> int:
        return view.wanted + self._extra

    def _spot_held(self, view: _View) -> int:
        return len(view.safe()) if self._notices else len(view.spot)

    def _on_demand_wanted(self, view: _View) -> int:
        counted = view.safe() if self._notices else view.spot
        ready = sum(n.phase is Phase.READY for n in counted)
        return max(0, min(view.wanted, view.wanted + self._extra - ready))

    def _most_tries(self, missing: int) -> int:
        return 2 * missing

    def _choose(self, view: _View, offers: list[Offering]) -> Offering | None:  # noqa: ARG002
        active = [o for o in view.offers if o.placement.zone in self._active]
        used = {n.placement.zone for n in view.spot}
        candidates = [o for o in active if o.placement.zone not in used] or active
        if not candidates:
            return None
        least = min(map(_usd, candidates))
        return self._random.choice([o for o in candidates if _usd(o) <= least + 1e-12])

    def _look(self, view: _View) -> None:
        zones = [o.placement.zone for o in view.offers]
        if not self._active and not self._preempted:
            self._active = list(zones)
        now = {n.id: (n.placement.zone, n.notice is not None, n.phase is Phase.READY) for n in view.spot}
        for node, (zone, noticed, _) in self._known.items():
            if (node not in now and (noticed or node not in self._ended)) or (
                self._notices and node in now and now[node][1] and not noticed
            ):
                self._bad_zone(zone)
        for node, (zone, _, ready) in now.items():
            was_ready = node in self._known and self._known[node][2]
            if ready and not was_ready and zone in self._preempted:
                self._preempted.remove(zone)
                self._active.append(zone)
        self._known = now

    def _bad_zone(self, zone: str) -> None:
        if zone in self._active:
            self._active.remove(zone)
            self._preempted.append(zone)
        everywhere = sorted([*self._active, *self._preempted])
        if len(self._active) < min(2, len(everywhere)):
            self._active, self._preempted = everywhere, []


def standard() -> dict[str, Callable[[], Baseline]]:
    """The baselines by name. Each run needs a fresh one."""
    makers: Iterable[Callable[[], Baseline]] = (
        AllOnDemand,
        RoundRobin,
        EvenSpread,
        StaticMix,
        lambda: StaticMix(rebalance=True),
        SpotHedge,
        lambda: SpotHedge(notices=True),
    )
    return {maker().name: maker for maker in makers}


def _view(fleet: Fleet, world: World) -> _View:
    living = [n for n in fleet.nodes if n.phase not in (Phase.TERMINATING, Phase.GONE)]
    offers = tuple(o for o in fleet.prices.on_sale if o.placement.market is Market.SPOT)
    on_demand = [o for o in fleet.prices.on_sale if o.placement.market is Market.ON_DEMAND]
    return _View(
        now=world.now,
        wanted=fleet.pool.replicas,
        spot=tuple(n for n in living if n.spot),
        on_demand=tuple(n for n in living if not n.spot),
        offers=offers,
        on_demand_offer=min(on_demand, key=lambda o: (_usd(o), o.placement)),
    )


def _usd(offer: Offering) -> float:
    """Recorded markets know all their prices."""
    return math.inf if offer.price is None else offer.price


def _spread(view: _View, offer: Offering) -> tuple[int, float, str]:
    zone = offer.placement.zone
    return view.held(zone), _usd(offer), zone


def _launch(fleet: Fleet, memory: Memory, offer: Offering, more: int = 0) -> Launch:
    return Launch(
        token=f"{fleet.pool.name}/1/{memory.serial + more}",
        placement=offer.placement,
        price=offer.price,
        cause=Cause.SHORT,
        reason="baseline",
    )


def _end(node: Node) -> Terminate:
    token = intent_key(node.id, ActionKind.TERMINATE)
    return Terminate(token=token, node=node.id, cause=Cause.EXCESS, reason="baseline")


def _trim(view: _View, wanted: int) -> list[Terminate]:
    """End spot nodes beyond the wanted number: those that start first, then the dearest, then the newest."""
    safe = view.safe()
    extra = len(safe) - wanted
    ranked = sorted(safe, key=lambda n: (n.phase is Phase.READY, -(n.price or 0.0), -n.launched_at, n.id))
    return [_end(n) for n in ranked[: max(0, extra)]]


def _set_on_demand(fleet: Fleet, memory: Memory, view: _View, wanted: int) -> list[Action]:
    """Launch or end on-demand nodes: those that start go first, then the newest."""
    have = len(view.on_demand)
    if have < wanted:
        return [_launch(fleet, memory, view.on_demand_offer, i) for i in range(wanted - have)]
    ranked = sorted(view.on_demand, key=lambda n: (n.phase is Phase.READY, -n.launched_at, n.id))
    return [_end(n) for n in ranked[: have - wanted]]
