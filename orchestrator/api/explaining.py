"""Answers `orchestrator explain SUBJECT`: the pool, a node, a zone or a policy, in sentences."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import policies
from orchestrator.loop.loop import Snapshot
from policies import explain
from policies.memory import decayed
from policies.prices import usd_per_hour

_NOT_POLICIES = frozenset(
    {
        "model",
        "rules",
        "actions",
        "events",
        "records",
        "memory",
        "memory_builder",
        "fleet",
        "observations",
        "plan_builder",
        "explain",
        "event_text",
        "fleet_cost",
        "prices",
    }
)


def explanation(subject: str, snapshot: Snapshot) -> tuple[str, ...]:
    """Sentences about a pool, or a node or a place of it; empty when it knows nothing of the subject."""
    fleet, world, memory = snapshot.fleet, snapshot.world, snapshot.memory
    if subject in ("pool", fleet.pool.name):
        return (*explain.pool_sentences(fleet, world, memory), *snapshot.plan.notes)
    matching = [n for n in fleet.nodes if n.id.startswith(subject)]
    if len(matching) == 1:
        return explain.node_sentences(matching[0], memory, world.now, world.gpus.get(matching[0].id))
    return _zone(subject, snapshot)


def policy_names() -> tuple[str, ...]:
    """The policies that can be explained."""
    found = (m.name for m in pkgutil.iter_modules(policies.__path__))
    return tuple(name for name in found if name not in _NOT_POLICIES)


def policy_text(name: str) -> tuple[str, ...]:
    """What a policy decides, why, and what it never does: its own documentation."""
    module = name.replace("-", "_")
    if module not in policy_names():
        return ()
    text = inspect.getdoc(importlib.import_module(f"policies.{module}")) or ""
    return tuple(block.strip() for block in text.partition("Example:")[0].split("\n\n") if block.strip())


def _zone(subject: str, snapshot: Snapshot) -> tuple[str, ...]:
    """What is sold in the zones or placements that a word names, and what is held against them."""
    memory, now = snapshot.memory, snapshot.world.now
    rules = snapshot.fleet.pool.placement
    found = []
    for offering in snapshot.fleet.prices.on_sale:
        place = offering.placement
        if subject not in (place.zone, place.region, place.instance_type, str(place), str(place.market)):
            continue
        held = sum(n.placement == place and n.capacity for n in snapshot.fleet.nodes)
        words = [f"{place}: {usd_per_hour(offering.price)}, {held} nodes of this pool"]
        for name, news, half_life in (
            ("refused", memory.refusals.get(place), rules.refusal_half_life),
            ("reclaimed", memory.reclaims.get(place), rules.reclaim_half_life),
        ):
            if news is not None:
                weight = decayed(news, now, half_life)
                words.append(f"last {name} {now - news.at:.0f} s ago (weight {weight:.2f})")
        found.append("; ".join(words) + ".")
    return tuple(found)
