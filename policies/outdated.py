"""Which nodes make way since their engines have other adapters than are wanted, and take none while they run.

What it decides: for engines that have the adapters that they were started with, which nodes are replaced
after the set was changed or an engine was started again without it, and which stay since it was changed back.
Why: the node goes on with what it has, so nothing is urgent: another one is started first, with the wanted
set, and the node drains once that serves, as if an operator had asked for it.
Never: more go at once than the disruption budget allows, nor any while the pool is short of others. Where all
that were launched since the change show something else, none goes: the next would too. Where only some do,
one an hour goes. One that an operator took back is spared. Order makes no difference: each engine has numbers
of its own.

Example: of four nodes with one adapter each, which was changed for another one, the oldest is replaced; then
the next.
"""

from __future__ import annotations

from policies.actions import Cause
from policies.adapter_events import NodeCurrent, NodeOutdated
from policies.fleet import Fleet
from policies.model import Pool, World
from policies.node import Node
from policies.plan_builder import Turn
from policies.records import Memory

AGAIN_AFTER = 3600.0
"""Seconds from one node that is replaced though it was launched since the change to the next."""


def news(pool: Pool, world: World, fleet: Fleet, memory: Memory) -> tuple[NodeOutdated | NodeCurrent, ...]:
    """Nodes that are to be replaced and that memory does not know of, and those that need not be any more."""
    requested = [n for n in fleet.nodes if n.operator is not None and n.operator.cause is Cause.OUTDATED]
    back = [n for n in requested if _differs(n) == ""]
    current = tuple(NodeCurrent(at=world.now, node=n.id) for n in back)
    if not pool.adapters.numbered or fleet.suspect or memory.paused(world.now) or not world.able:
        return current
    going = sum(n.units for n in requested) - sum(n.units for n in back)
    serving = fleet.ready_units + sum(n.units for n in requested if n.drain is None and n.answers)
    found: list[NodeOutdated] = []
    for node, differs, again in _outdated(world, fleet, memory):
        if serving < pool.replicas or (going and going + node.units > pool.disruption_budget):
            break
        going += node.units
        reason = f"{differs}; a node that is started with the wanted ones takes its place"
        budget = pool.drain.budget
        found.append(NodeOutdated(at=world.now, node=node.id, reason=reason, budget=budget, again=again))
    return (*current, *found)


def tell(turn: Turn) -> None:
    """Say which engines were launched to have the wanted adapters and do not."""
    if turn.pool.adapters.numbered:
        for node in turn.fleet.nodes:
            differs = _differs(node)
            if differs and _stays(turn.memory, node) and _launched_since(turn.memory, node):
                turn.note(f"{node.id}: {differs}, though it was launched to have the wanted ones")


def _outdated(world: World, fleet: Fleet, memory: Memory) -> list[tuple[Node, str, bool]]:
    """Nodes that should be replaced, the oldest first; how they differ; if they were launched since then."""
    staying = [(n, _differs(n)) for n in fleet.nodes if _stays(memory, n)]
    since = [(n, differs) for n, differs in staying if _launched_since(memory, n)]
    before = [(n, differs, False) for n, differs in staying if differs and (n, differs) not in since]
    wrong = [(n, differs, True) for n, differs in since if differs]
    if not wrong:
        return before
    if not any(differs == "" for _, differs in since):
        return []
    last = memory.started_with.again_at
    due = last is None or world.now - last >= AGAIN_AFTER
    return [*before, *(wrong[:1] if due else ())]


def _stays(memory: Memory, node: Node) -> bool:
    """True for a node that serves and stays as far as is decided."""
    return node.ready and not memory.nodes[node.id].spared


def _launched_since(memory: Memory, node: Node) -> bool:
    """True for a node whose launch was opened after the set was changed. See `Turn.launch` for tokens."""
    _, *words = node.token.rsplit("/", 2)
    numbers = tuple(int(word) for word in words if word.isdecimal())
    return len(numbers) == 2 and numbers > memory.started_with.since


def _differs(node: Node) -> str | None:
    """What its engine has otherwise than is wanted, in words; empty for nothing, None where nobody knows."""
    pool, reading = node.evidence.pool, node.evidence.look(node.id)
    if reading is None or not reading.ok or reading.adapters_at is None:
        return None
    has, wanted = {*reading.adapters}, {adapter.location for adapter in pool.adapters.wanted}
    lacks = ", ".join(adapter.name for adapter in pool.adapters.wanted if adapter.location not in has)
    more = ", ".join(file for file in reading.adapters if file not in wanted)
    said = " and ".join(filter(None, (f"lacks {lacks}" if lacks else "", f"has {more}" if more else "")))
    return f"its engine {said}" if said else ""
