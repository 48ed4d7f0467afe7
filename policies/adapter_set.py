"""What becomes of the adapters of each node in a turn: routed, loaded, unloaded.

What it decides: which adapters each target is sent requests for, which node loads or lets go of which, and
which nodes are not ready to be targets since they lack some.
Why: a request for an adapter that its node does not hold fails, and one that is unloaded under a request may.
So an adapter is routed to a node once it was loaded there and seen to work, and unloaded once every balancer
shows, newer than what it was last told, that it gets none any more and has none left. A new revision is
loaded beside the old one on every node first, and then takes all new requests at once; the old one goes on
with the streams that it began, and is let go of when none is left. Where not all fit, `policies.adapters`
says which node should hold which; a few more than that may be there while they take the place of others.
Never: what may get requests is unloaded; a node becomes a target before it holds all that it should, unless
a load failed there `GIVEN_UP_AFTER` times, or it has waited for `_LONGEST_WAIT`. Nothing is loaded or
unloaded while the pool is paused, without the lease, or while the journal takes nothing.

Example: an engine was started again: its adapters are out of the set in the turn that sees it, and loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set

from policies.actions import LoadAdapter, UnloadAdapter
from policies.adapter_events import AdapterLost
from policies.adapter_memory import due
from policies.adapters import assign
from policies.evidence import Evidence
from policies.fleet import Fleet
from policies.held import Adapter, AdapterUse, Held, beside, held_as, is_ours, revision_of
from policies.model import EngineReading, Phase, Target, World
from policies.node import Node
from policies.records import AdapterRecord
from policies.value import lazy

LOADS_AT_ONCE = 4
"""Calls for adapters of one node that may be under way at the same time."""

GIVEN_UP_AFTER = 3
"""Loads that fail in a row after which a node does without the adapter. It is tried on."""

_LONGEST_WAIT = 600.0
"""Seconds after its engine is ready in which a node waits for its adapters before it is a target: one whose
loads hang serves what it has."""

_CALL_TIMEOUT = 180.0
"""Seconds after which a call that did not come back is made again: longer than one may take."""

_SWITCHED_BY = {True: 1.0, False: 0.5}
"""Share of the nodes that must hold a new revision before it is routed: all where they load it beside the old
one, half where they are replaced for it."""

Key = tuple[str, str]
"""Name and revision of an adapter."""


class NodeAdapters:
    """What is known of the adapters of one node. Of an engine that was not looked at, memory is believed."""

    def __init__(self, evidence: Evidence, node: str) -> None:
        self._rules, self._reading = evidence.pool.adapters, evidence.look(node)
        self._memory = {a.adapter: a for a in evidence.memory.nodes[node].adapters}
        self._shown = evidence.routing.adapters.get(node, ())

    @lazy
    def held(self) -> Mapping[Key, Held]:
        """What it holds and was seen to work."""
        rows = self._loaded() if self._rules.runtime else self._numbered()
        return {(h.name, h.revision): h for h in rows}

    def _loaded(self) -> Iterator[Held]:
        for record in self._memory.values():
            if record.held and (record.call is None or record.call.load):
                yield held_as(record.adapter)
        for held in self._shown:  # a journal that is lost says nothing of what is at work
            listed = self._reading is None or held.served_as in self._reading.adapters
            if held.served_as and held.served_as not in self._memory and listed:
                yield held

    def _numbered(self) -> Iterator[Held]:
        if self._reading is None:
            yield from (held for held in self._shown if held.number is not None)
            return
        numbers = {revision_of(file): number for number, file in enumerate(self._reading.adapters)}
        wanted = ((adapter.name, adapter.revision) for adapter in self._rules.wanted)
        shown = ((held.name, held.revision) for held in self._shown if held.number is not None)
        for name, revision in {**dict.fromkeys(wanted), **dict.fromkeys(shown)}:
            if revision in numbers:
                yield Held(name=name, number=numbers[revision], revision=revision)

    @lazy
    def unknown(self) -> Set[str]:
        """What its engine lists of ours and nobody here loaded, or that was unloaded before the list."""
        reading = self._reading
        if reading is None or reading.adapters_at is None:
            return set()
        held = {h.served_as for h in self.held.values()}
        return {
            name
            for name in reading.adapters
            if is_ours(name)
            and name not in held
            and (name not in self._memory or reading.adapters_at > self._memory[name].since)
        }

    def record(self, served_as: str) -> AdapterRecord | None:
        """What is remembered of one."""
        return self._memory.get(served_as)

    @lazy
    def calls(self) -> Set[str]:
        """Those that its engine is being asked to load or to unload."""
        return {a.adapter for a in self._memory.values() if a.call is not None and not a.call.failure}

    @lazy
    def leftover(self) -> Set[str]:
        """Those that could not be unloaded yet."""
        return {a.adapter for a in self._memory.values() if a.call is not None and not a.call.load}

    @lazy
    def present(self) -> Set[str]:
        """What takes up room on it: held, being loaded or unloaded, or listed though nobody here asked."""
        return {h.served_as for h in self.held.values()} | self.unknown | self.calls

    def failures(self, adapter: Adapter) -> int:
        """Loads of it that failed in a row."""
        record = self._memory.get(adapter.served_as)
        call = None if record is None else record.call
        return call.attempts - (not call.failure) if call is not None and call.load else 0

    def gave_up(self, adapter: Adapter) -> str:
        """Why it does without an adapter for now; empty where it does not."""
        record = self._memory.get(adapter.served_as)
        if record is None or record.call is None or self.failures(adapter) < GIVEN_UP_AFTER:
            return ""
        return record.call.failure or "it is tried again"

    def beside(self, adapter: Adapter) -> bool:
        """It has another revision of it, beside which this one takes up room."""
        return any(name == adapter.name and revision != adapter.revision for name, revision in self.held)


class AdapterSet:
    """What one turn wants of the adapters of a pool. `leaving`: nodes that go by what it decided so far."""

    def __init__(self, world: World, fleet: Fleet, leaving: Set[str]) -> None:
        self._pool, self._world, self._evidence = fleet.pool, world, fleet.evidence
        self._memory, self._routing = self._evidence.memory, self._evidence.routing
        self._shown = self._routing.adapters
        self._wanted = {adapter.name: adapter for adapter in self._pool.adapters.wanted}
        known = (
            bool(self._wanted) or any(r.adapters for r in self._memory.nodes.values()) or bool(self._shown)
        )
        self.nodes: dict[str, Node] = {
            n.id: n for n in fleet.nodes if known and n.id not in leaving and _takes_part(n)
        }
        self.of = {n: NodeAdapters(self._evidence, n) for n in self.nodes}

    # -- what balancers show -------------------------------------------------------------------------

    @lazy
    def _targets(self) -> Sequence[Target]:
        return [target for balancer in self._routing for target in balancer.targets]

    @lazy
    def _busy(self) -> Counter[Key]:
        """Requests in flight of each revision, on all targets."""
        found: Counter[Key] = Counter()
        for target in self._targets:
            for held, count in zip(target.adapters or (), target.adapter_in_flight, strict=False):
                found[held.name, held.revision] += count
            for held in target.adapters_leaving:
                found[held.name, held.revision] += 1
        return found

    @property
    def unroutable(self) -> bool:
        """Some balancer cannot route adapters."""
        return bool(self._wanted) and any(t.adapters is None for t in self._targets)

    # -- what should be -----------------------------------------------------------------------------

    @lazy
    def desired(self) -> Mapping[str, Set[str]]:
        """By node, the names that it should hold."""
        has = {node: self._names(node) for node in self.nodes}
        use: Mapping[str, AdapterUse] = self._world.adapter_use
        slots = self._pool.adapters.slots if self._pool.adapters.runtime else None
        serving = {node.id for node in self.nodes.values() if node.serving}
        return assign(tuple(self._wanted), use, has, slots=slots, serving=serving)

    def _names(self, node: str) -> frozenset[str]:
        """Wanted names of which a node holds, or loads, some revision."""
        of = self.of[node]
        found = {name for name, _ in of.held} | {held_as(p).name for p in of.present}
        return frozenset(found & self._wanted.keys())

    @lazy
    def _routable(self) -> Mapping[str, bool]:
        """Whether the wanted revision of a name may get requests: see the module for new ones."""
        return {name: self._may_switch(adapter) for name, adapter in self._wanted.items()}

    @lazy
    def _firsts(self) -> Mapping[str, Mapping[str, Set[str]]]:
        """By node and name, the revisions that get its new requests."""
        found: dict[str, dict[str, set[str]]] = {}
        for target in self._targets:
            mine, seen = found.setdefault(target.id, {}), set[str]()
            for held in target.adapters or ():
                if held.name not in seen:
                    mine.setdefault(held.name, set()).add(held.revision)
                seen.add(held.name)
        return found

    @lazy
    def _in_use(self) -> Mapping[str, Set[str]]:
        """By name, the revisions that get new requests anywhere."""
        found: dict[str, set[str]] = {}
        for firsts in self._firsts.values():
            for name, revisions in firsts.items():
                found.setdefault(name, set()).update(revisions)
        return found

    def _may_switch(self, adapter: Adapter) -> bool:
        revisions = self._in_use.get(adapter.name, ())
        if not revisions or adapter.revision in revisions:
            return True
        key = adapter.name, adapter.revision
        should = [n for n, node in self.nodes.items() if node.serving and adapter.name in self.desired[n]]
        able = [n for n in should if not self.of[n].gave_up(adapter)]
        holds = sum(key in self.of[n].held for n in able)
        return bool(holds) and holds >= _SWITCHED_BY[self._pool.adapters.runtime] * len(able)

    @lazy
    def _turns(self) -> Set[str]:
        """Names whose new revision may lie beside the old one now, the same on every node: as many as there
        is room for. Were they others on each node, each would fill its room with what waits for the others.
        """
        waiting: dict[str, int] = {}
        for name, adapter in self._wanted.items():
            able = [of for n, of in self.of.items() if name in self.desired[n] and not of.gave_up(adapter)]
            if able and not self._routable[name]:
                key = name, adapter.revision
                waiting[name] = sum(key in of.held and of.beside(adapter) for of in able)
        slots = self._pool.adapters.slots
        most = len(waiting) if slots is None else beside(slots)
        return set(sorted(waiting, key=lambda name: -waiting[name])[:most])

    def _in_turn(self, node: str, name: str) -> bool:
        adapter, of = self._wanted[name], self.of[node]
        free = self._routable[name] or not of.beside(adapter)
        return free or name in self._turns or bool(of.gave_up(adapter))

    def rows(self, node: str) -> tuple[Held, ...]:
        """What a node's target is sent requests for."""
        if node in self.nodes:
            return self._rows[node]
        shown = tuple(self._shown.get(node, ()))  # it drains, or cannot be judged: as it is
        if not shown or node not in self._memory.nodes:
            return shown
        held = NodeAdapters(self._evidence, node).held
        return tuple(row for row in shown if (row.name, row.revision) in held)

    @lazy
    def _rows(self) -> Mapping[str, tuple[Held, ...]]:
        return {node: tuple(self._of_node(node)) for node in self.nodes}

    def _of_node(self, node: str) -> Iterator[Held]:
        of, slots = self.of[node], self._pool.adapters.slots
        crowded = slots is not None and len({name for name, _ in of.held}) > slots
        shown: dict[str, list[Held]] = {}
        for held in self._shown.get(node, ()):
            shown.setdefault(held.name, []).append(held)
        for name, adapter in self._wanted.items():
            if crowded and name not in self.desired[node]:
                continue
            new = of.held.get((name, adapter.revision))
            if new is not None and self._routable[name]:
                yield new
            for old in shown.get(name, ()):
                mine = (name, old.revision) in of.held
                if old.revision != adapter.revision and mine and self._goes_on(node, old):
                    yield old

    def _goes_on(self, node: str, old: Held) -> bool:
        """An old revision stays until the new one is known to get the new requests, and while it has some."""
        if not self._routable[old.name]:
            return True
        new = self._wanted[old.name].revision
        switched = self._firsts.get(node, {}).get(old.name, set()) <= {new}
        holds_new = (old.name, new) in self.of[node].held
        return holds_new and (not switched or self._busy[old.name, old.revision] > 0)

    def missing(self, node: str) -> list[Adapter]:
        """What a node should hold and does not."""
        held = self.of[node].held
        desired = (self._wanted[name] for name in self._wanted if name in self.desired[node])
        return [adapter for adapter in desired if (adapter.name, adapter.revision) not in held]

    def waits(self, node: str) -> bool:
        """A node is not ready to be a target, since it loads what it should hold."""
        if node not in self.nodes or not self._pool.adapters.runtime:
            return False
        ready_at = self.nodes[node].ready_at
        if ready_at is not None and self._world.now - ready_at >= _LONGEST_WAIT:
            return False
        return any(not self.of[node].gave_up(adapter) for adapter in self.missing(node))

    def lacking(self) -> Iterator[tuple[str, str]]:
        """Nodes that serve, each with the adapters that it cannot load and why, in words."""
        for node, of in self.of.items():
            found = [(a.name, of.gave_up(a)) for a in self.missing(node)] if self._wanted else []
            words = [f"adapter {name}, which could not be loaded: {why}" for name, why in found if why]
            if words and self.nodes[node].serving:
                yield node, "; ".join(words)

    # -- what is done -------------------------------------------------------------------------------

    def calls(self) -> Iterator[LoadAdapter | UnloadAdapter]:
        """What engines are to be asked for in this turn."""
        if not self._pool.adapters.runtime:
            return
        for node in self.nodes.values():
            if node.address and self._evidence.is_up(node.id):
                yield from self._unloads(node)
                yield from self._loads(node)

    def _loads(self, node: Node) -> Iterator[LoadAdapter]:
        of, slots, use = self.of[node.id], self._pool.adapters.slots, self._world.adapter_use
        present, calls = len(of.present), len(of.calls)

        def urgency(adapter: Adapter) -> tuple[int, bool, float]:
            known = use.get(adapter.name, AdapterUse())
            return of.failures(adapter), not known.waiting, -known.asked

        for adapter in sorted(self.missing(node.id), key=urgency):
            record = of.record(adapter.served_as)
            call = None if record is None else record.call
            if call is not None and not due(call, self._world.now, _CALL_TIMEOUT):
                continue
            there, under_way = adapter.served_as in of.present, adapter.served_as in of.calls
            full = slots is not None and present >= slots + beside(slots) and not there
            if under_way or (calls < LOADS_AT_ONCE and not full and self._in_turn(node.id, adapter.name)):
                calls, present = calls + (not under_way), present + (not there)
                yield _load(node, adapter, self._why(node, adapter))

    def _why(self, node: Node, adapter: Adapter) -> str:
        if self._world.adapter_use.get(adapter.name, AdapterUse()).waiting:
            return "a request waits for it"
        if any(name == adapter.name for name, _ in self.of[node.id].held):
            return "its source is another now"
        return "the node serves without it" if node.serving else "the node should hold it before it serves"

    def _unloads(self, node: Node) -> Iterator[UnloadAdapter]:
        of = self.of[node.id]
        desired = (name for name in self._wanted if name in self.desired[node.id])
        kept = {self._wanted[name].served_as for name in desired if self._in_turn(node.id, name)}
        kept |= {held.served_as for held in self.rows(node.id)}
        for served_as in sorted((of.present | of.leftover) - kept):
            record = of.record(served_as)
            call = None if record is None else record.call
            if call is not None and not due(call, self._world.now, _CALL_TIMEOUT):
                continue
            if self._lets_go(node, served_as):
                name = held_as(served_as).name
                why = "its source is another now" if name in self.desired[node.id] else "it is used least"
                why = why if name in self._wanted else "it is not configured any more"
                yield UnloadAdapter(node=node.id, address=node.address, served_as=served_as, reason=why)

    def _lets_go(self, node: Node, served_as: str) -> bool:
        """Every balancer shows that the node gets no requests for it, and has none, whatever it was told."""
        if not node.serving and not self._shown.get(node.id) and not self._written(node.id):
            return True
        if not self._routing.confirmed or self._written(node.id):
            return False
        shown = self._routing.targets.get(node.id, ())
        rows = (held for target in shown for held in (*(target.adapters or ()), *target.adapters_leaving))
        return all(held.served_as != served_as for held in rows)

    def _written(self, node: str) -> bool:
        """Some set that sends it requests may have landed, or may land."""
        return any(node in balancer.being_written for balancer in self._routing)


def lost(evidence: Evidence) -> Iterator[AdapterLost]:
    """What engines that answer do not list any more, though it was loaded before they were asked."""
    for node, record in sorted(evidence.memory.nodes.items()):
        look = evidence.look(node) if record.adapters and evidence.is_up(node) else None
        for adapter in record.adapters if look is not None else ():
            if look is not None and adapter.held and _lists_no_more(look, adapter):
                yield AdapterLost(at=evidence.now, node=node, adapter=adapter.adapter)


def _lists_no_more(reading: EngineReading, adapter: AdapterRecord) -> bool:
    listed_at = reading.adapters_at
    return listed_at is not None and listed_at > adapter.since and adapter.adapter not in reading.adapters


def _load(node: Node, adapter: Adapter, why: str) -> LoadAdapter:
    return LoadAdapter(
        node=node.id,
        address=node.address,
        served_as=adapter.served_as,
        source=adapter.location,
        reason=why,
    )


def _takes_part(node: Node) -> bool:
    """A node whose engine is up and that stays."""
    return node.phase is Phase.READY and not (node.leaving or node.lost or node.aside)
