"""How the pool is, judged by what clients get.

What it decides: one word for the pool, how many units serve clients, and why it is no better.
Why: nodes are means. A pool whose nodes are all ready is down when its gateway is dead, frozen, has no usable
target or refuses what clients ask. One judgement is shown everywhere: status, exit code, readiness, metrics,
alerts, the service manager. What stands in the way of every request comes first, before a pause too; that
all is served on demand, since spot cannot be had, comes last and is not "ok".
Never: an old answer counts as true for longer than it may be believed, or one lost look as an outage; a
balancer whose description cannot be read counts as dead while its nodes may serve through it; a pool that
never served anybody counts as down while it starts, or as starting once nothing more is launched of what is
missing (`policies.bars`); a target that nobody asked for counts as serving; a pool that is wanted empty is
down. One that a budget grants less than it wants (`policies.budget`) has started once it has that much, and
is degraded.

Example:
    >>> from policies.fleet import Fleet
    >>> from policies.model import Observed, Pool, World
    >>> from policies.records import Memory
    >>> from policies.service import Service
    >>> world = World(now=100.0, regions={"r": Observed(value=(), at=99.0)},
    ...               balancers={"gateway": Observed(value=(), at=80.0, error="connection refused")},
    ...               services={"gateway": Service(in_path=True)})
    >>> memory = Memory(served_at=10.0, whole_at=10.0)
    >>> found = judge(Fleet.of(Pool(name="p", replicas=2), world, memory), world, memory)
    >>> found.state.value, found.reasons
    ('down', ('gateway has not answered for 20 s: no request gets through (connection refused)',))
"""

from __future__ import annotations

from collections.abc import Set

from policies import bars
from policies.budget import in_effect
from policies.events import StateChanged
from policies.evidence import Balancer
from policies.fleet import Fleet
from policies.model import Market, Word, World
from policies.records import STATE_WINDOW, Memory
from policies.service import Service
from policies.spot_loss import SpotLoss, spot_loss
from policies.value import replace, value

_FEWEST = 5
"""Failed requests from which on a balancer's count says something."""

_NEARLY_ALL, _PART = 0.95, 0.05
"""Shares of the requests that fail from which on nobody is served, and some are not."""

_COUNTED = 10.0
"""Seconds over which a balancer counts its requests."""

_GRACE = 3.0
"""Seconds in which a balancer takes its first set, or one that it lost, before it counts as having none."""


_TOLD, _TOLD_WORSE = 16, 20
"""Changes of the state that are told within `STATE_WINDOW`, and those of them that are told for the worse."""


class State(Word):
    """How a pool is, the worst first."""

    DOWN = "down"  # clients get nothing
    PAUSED = "paused"  # an operator asked for hands off
    STARTING = "starting"  # it was not whole yet, or nobody has looked since the daemon started
    BELOW_FLOOR = "below-floor"  # too few on-demand nodes, or too few at all
    DEGRADED = "degraded"  # clients are served by less than wanted, or nothing could be repaired
    ALL_ON_DEMAND = "all-on-demand"  # clients are served as wanted, at a higher price: spot cannot be had
    OK = "ok"
    EMPTY = "empty"  # none is wanted, and nothing is wrong with that


@value
class Verdict:
    """The judgement: the word, the units that serve clients, and a sentence for each thing that is wrong.

    `spot_loss` is set while spot cannot be had, whatever the word is.
    """

    state: State
    serving: int
    reasons: tuple[str, ...] = ()
    spot_loss: SpotLoss | None = None


@value
class _Way:
    """One way from clients to nodes. `lost`: why it serves nobody, `doubt`: what is wrong with it otherwise.

    `pending`: nobody has looked at it yet. `nodes` serve through it.
    """

    lost: str = ""
    doubt: str = ""
    pending: bool = False
    nodes: Set[str] = frozenset()


def judge(fleet: Fleet, world: World, memory: Memory) -> Verdict:
    """Judge the pool as of now. Linear in the number of nodes and targets."""
    ways = [_way(balancer, fleet, world, memory) for balancer in fleet.evidence.routing]
    reached = {node for way in ways if not way.lost for node in way.nodes}
    here = fleet.ready if not ways else (n for n in fleet.nodes if n.id in reached)
    serving = sum(n.units for n in here)
    reasons = tuple(text for way in ways for text in (way.lost, way.doubt) if text)
    if world.grant is not None and world.grant.why and fleet.ready_units < fleet.pool.replicas:
        reasons += (world.grant.why,)
    state, lost = _state(fleet, world, memory, ways, serving), spot_loss(fleet, world, memory)
    if state is State.OK and lost is not None:
        state = State.ALL_ON_DEMAND
    return Verdict(state=state, serving=serving, reasons=reasons, spot_loss=lost)


def change(found: Verdict, fleet: Fleet, world: World, memory: Memory) -> tuple[StateChanged, ...]:
    """The event that a judgement is, where it is not what was told last.

    A pool that goes from one state to another and back all the time is told of a few times in ten minutes;
    what is worse than before is told a little more often. The state that stays is always told in the end.
    """
    known = memory.state
    if known is not None and known.state == found.state:
        return ()
    if known is not None and found.state is State.STARTING and memory.whole_at is not None:
        return ()  # nobody has looked yet since this daemon started or woke up
    if known is not None:
        lately = sum(world.now - at < STATE_WINDOW for at in known.changes)
        if lately >= (_TOLD_WORSE if _worse(found.state, known.state) else _TOLD):
            return ()
    before = known.state if known is not None else ""
    return (
        StateChanged(
            at=world.now, state=found.state.value, before=before, why=_why(found, fleet, world, memory)
        ),
    )


def _worse(state: State, before: str) -> bool:
    order = [each.value for each in State]
    return before in order and order.index(state.value) < order.index(before)


def _why(found: Verdict, fleet: Fleet, world: World, memory: Memory) -> str:
    pool, on_demand = fleet.pool, fleet.ready_by_market[Market.ON_DEMAND]
    counts = (
        f"{fleet.ready_units} of {pool.replicas} {pool.noun(pool.replicas)} ready, {found.serving} serving, "
        f"{on_demand} on-demand against a floor of {pool.on_demand_floor}"
    )
    hidden = (fleet.sight.hidden(name) for name, view in sorted(world.regions.items()) if view.at is not None)
    held = (key for key, bar in sorted(memory.bars.items()) if bars.holds(bar, pool.health))
    paused = (f"{bars.words(key)} is paused" for key in held)
    said = (
        *found.reasons,
        bars.never_started(pool, memory),
        *paused,
        "" if found.spot_loss is None else "spot cannot be had",
        "an operator paused it" if found.state is State.PAUSED else "",
        "the database does not answer" if world.failsafe_since is not None else "",
        "" if world.durable or world.failsafe_since is not None else "the journal cannot be written",
        *hidden,
        counts,
    )
    return "; ".join(text for text in said if text)


def unread(fleet: Fleet, world: World, name: str) -> bool:
    """True when a balancer has not answered for so long that what it holds is not known.

    Counted from when this daemon started or woke up: before that nobody asked.
    """
    service, silence = world.services.get(name, Service()), fleet.evidence.routing.by_name[name].silence
    patience = 0.0 if service.in_path else fleet.pool.patience.stale_after
    return silence > max(patience, service.unread_after)


def _state(fleet: Fleet, world: World, memory: Memory, ways: list[_Way], serving: int) -> State:
    pool, ready = fleet.pool, fleet.ready_units
    # Without a fresh list nothing there could be replaced, however well every node is.
    blind = any(fleet.sight.hidden(region) for region in world.regions)
    bound = world.failsafe_since is not None or not world.durable
    troubled = bound or blind or any(way.lost or way.doubt for way in ways)
    if not pool.replicas:
        if memory.paused(world.now):
            return State.PAUSED
        return State.DEGRADED if troubled else State.EMPTY
    if ways and all(way.lost for way in ways) and serving < pool.replicas and _has_served(world, memory):
        return State.DOWN
    if memory.paused(world.now):
        return State.PAUSED
    grows = not _stands_still(fleet, memory)
    aim = in_effect(pool, world.grant).replicas
    if not ready and (bars.never_started(pool, memory) or not grows or not aim):
        return State.DOWN
    # After a restart nodes serve on; for a moment nobody has looked at their engines yet.
    unprobed = any(n.working and not n.heard.known for n in fleet.nodes)
    if ready < aim and ((memory.whole_at is None and grows) or unprobed):
        return State.STARTING
    if any(way.pending for way in ways) or (serving < aim and _comes_in(world, memory) and grows):
        return State.STARTING
    if fleet.ready_by_market[Market.ON_DEMAND] < pool.on_demand_floor or ready < pool.min_serving:
        return State.BELOW_FLOOR
    well = min(ready, serving) >= pool.replicas and not troubled
    return State.OK if well else State.DEGRADED


def _stands_still(fleet: Fleet, memory: Memory) -> bool:
    """What is missing is spot that is paused, and nothing is on its way: no launch waits for an answer."""
    asked = any(launch.landed or not launch.unanswered for launch in fleet.launching)
    on_its_way = asked or any(not n.working for n in fleet.capacity)
    return not on_its_way and bars.spot_paused(fleet.pool, memory, bars.on_sale(fleet.prices.on_sale))


def _has_served(world: World, memory: Memory) -> bool:
    """True once some balancer has taken a target; one that never did is given up soon after all is ready."""
    return memory.served_at is not None or not _comes_in(world, memory)


def _comes_in(world: World, memory: Memory) -> bool:
    """The pool is not whole yet, or became so a moment ago: its last nodes are on their way in."""
    return memory.whole_at is None or world.now - memory.whole_at <= _GRACE


def _way(balancer: Balancer, fleet: Fleet, world: World, memory: Memory) -> _Way:
    name, asked = balancer.name, balancer.took_active
    service = world.services.get(name, Service())
    if unread(fleet, world, name):
        why = f" ({balancer.error})" if balancer.error else ""
        for_long = f"{name} has not answered for {balancer.silence:.0f} s"
        if service.in_path:
            return _Way(lost=f"{for_long}: no request gets through{why}")
        answering = frozenset(n.id for n in fleet.nodes if n.id in asked and n.answers)
        return _Way(doubt=f"{for_long}: it is not known who serves{why}", nodes=answering)
    if balancer.read_at is None:
        return _Way(pending=True, nodes=asked & fleet.by_id.keys())
    bare = _stays_bare(balancer, service, memory)
    nodes = _usable(balancer, bare=bare) & fleet.by_id.keys()
    if not fleet.pool.replicas:
        return _counted(name, replace(service, failed=0), nodes)  # what is refused is refused as asked for
    taking = service.bare_since is not None and not asked.isdisjoint(fleet.by_id)
    if not nodes and (not taking or bare):
        if memory.whole_at is None and memory.served_at is None and not fleet.ready:
            return _Way(pending=True)  # nothing has come up yet that it could have
        return _Way(lost=f"{name} has no usable target")
    if memory.served_at is not None and world.now - memory.served_at <= _COUNTED:
        service = replace(service, failed=0)  # clients waited for its first target
    return _counted(name, service, nodes)


def _usable(balancer: Balancer, *, bare: bool) -> Set[str]:
    """Nodes that a balancer has as targets because we asked for it, and that are not known to fail.

    A look from before the last set that it took tells of that set only who failed; but one that takes sets
    and shows none of them (`bare`) has none. Before this daemon's first set, what it shows counts as asked
    for.
    """
    if balancer.applied_at is None:
        return balancer.usable
    if bare or (balancer.read_at is not None and balancer.read_at >= balancer.applied_at):
        return balancer.usable & balancer.took_active
    return balancer.took_active - balancer.finds_unhealthy


def _stays_bare(balancer: Balancer, service: Service, memory: Memory) -> bool:
    """Looks have shown no usable target for a while. Those from before its first set do not count."""
    if balancer.read_at is None or service.bare_since is None:
        return False
    return balancer.read_at - max(service.bare_since, memory.served_at or service.bare_since) > _GRACE


def _counted(name: str, service: Service, nodes: Set[str]) -> _Way:
    """What a balancer's own count of requests says, beside its targets."""
    if service.refuses:
        text = f"{name} lets no client in: {service.refuses}"
        nobody = service.answered + service.held == 0
        return _Way(lost=text) if nobody else _Way(doubt=text, nodes=nodes)
    ended = service.answered + service.failed
    share = service.failed / max(1, ended + service.held)
    if service.failed < _FEWEST or share < _PART:
        return _Way(nodes=nodes)
    text = f"{name} refused or failed {service.failed} of the last {ended} requests"
    return _Way(lost=text) if share >= _NEARLY_ALL else _Way(doubt=text, nodes=nodes)
