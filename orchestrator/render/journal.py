"""What `orchestrator journal` shows: journals, replays and single turns as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from orchestrator import __version__
from orchestrator.journal.replay import JsonPlan, Replayed, Scene
from orchestrator.views.journal import JournalView, ReplayView
from orchestrator.words import age, clean, instant, plural
from policies import explain
from policies.model import Observed, World

TURNS_SHOWN: Final = 20
"""Differing turns that are listed; JSON has all of them."""

LINES_SHOWN: Final = 10
"""Differences of one turn that are listed; `--turn` shows all of them."""


def contents(view: JournalView) -> str:
    """What a journal holds."""
    lines = [f"{view['file']}: journal, format {view['format']}, {_size(view['size'])}"]
    if view["events"]:
        span = _span(view["first_at"], view["last_at"])
        lines.append(
            f"  events  {view['events']} (numbers {view['first_event']} to {view['last_event']}), {span}"
        )
    else:
        lines.append("  events  none")
    if view["turns"]:
        span = _span(view["first_turn_at"], view["last_turn_at"])
        by = ", ".join(view["versions"])
        lines.append(
            f"  turns   {view['turns']} recorded in {_size(view['turn_bytes'])}, {span}, by version {by}"
        )
    else:
        lines.append("  turns   none recorded")
    lines.append(f"  pools   {', '.join(view['pools']) or 'none'}")
    lines.append(f"  epoch   {view['epoch']}; {plural(view['open_intents'], 'open intent')}")
    return _text(lines)


def replay(view: ReplayView, again: str) -> str:
    """The outcome of a replay. `again` is the command that ran it, to be typed with --turn."""
    span = _span(view["first_at"], view["last_at"])
    lines = [
        f"{plural(view['turns'], 'turn')} decided again, {view['first_turn']} to {view['last_turn']}, {span}",
        f"  identical   {view['identical']}",
        f"  differing   {view['differing']}",
        f"  unreadable  {view['unreadable']}",
    ]
    for turn in view["different"][:TURNS_SHOWN]:
        lines.append(
            f"turn {turn['turn']}  {instant(turn['at'])}  after event {turn['event']}  {turn['pool']}"
        )
        if turn["unreadable"] is not None:
            lines.append(f"  {turn['unreadable']}")
        lines += [f"  {text}" for text in turn["differences"][:LINES_SHOWN]]
        more = len(turn["differences"]) - LINES_SHOWN
        if more > 0:
            lines.append(f"  and {plural(more, 'more difference')}")
    more = len(view["different"]) - TURNS_SHOWN
    if more > 0:
        lines.append(f"and {plural(more, 'more turn')}; -o json has all of them")
    lines.append(_verdict(view))
    if view["different"]:
        lines.append(f"Next: {again} --turn {view['different'][0]['turn']}")
    return _text(lines)


def _verdict(view: ReplayView) -> str:
    if not view["different"]:
        return "Every plan came out the same, byte for byte."
    if not view["differing"]:
        return "What can be read came out the same; the rest of the file is damaged."
    others = [version for version in view["versions"] if version != __version__]
    if others:
        return (
            f"Recorded by version {', '.join(view['versions'])}; "
            f"version {__version__} would have decided otherwise."
        )
    return (
        f"Version {__version__} recorded these turns and now decides otherwise: either its code was changed "
        "since, or a plan depends on something that the journal does not hold, which is a bug."
    )


def turn(found: Replayed, scene: Scene) -> str:
    """One turn in words: what it saw, what it decided and why, and whether it decides so again."""
    memory, world = scene.memory, scene.world
    lines = [
        f"Turn {found.number} of {found.pool}, {instant(found.at)}, after event {found.seq}, "
        f"recorded by version {found.version}",
        "Seen",
        *(f"  {line}" for line in _world(world)),
        *(f"  {line}" for line in _memory(scene)),
        "Decided",
        *(f"  {line}" for line in _plan(found.recorded)),
        "Why",
        *(f"  {line}" for line in explain.pool_sentences(scene.fleet, world, memory)),
        *(f"  {note}" for note in found.recorded.get("notes", ())),
        "Nodes",
        *(
            f"  {node.id}  {node.phase}  {explain.why(node, memory, world.now, world.gpus.get(node.id))}"
            for node in scene.fleet.nodes
        ),
    ]
    if found.differences:
        lines += ["Decided again, it differs", *(f"  {text}" for text in found.differences)]
    else:
        lines.append("Decided again, it is the same, byte for byte.")
    return _text(lines)


def _world(world: World) -> Iterator[str]:
    for region, lists in world.regions.items():
        states = Counter(str(i.state) for i in lists.value)
        where = f" in {region}" if region else ""
        yield f"machines   {_counted(states)}{where}; {_read(lists, world.now)}"
    ready = sum(r.ready and r.ok for r in world.engines.values())
    yield f"engines    {len(world.engines)} probed, {ready} answer and are ready"
    for name, view in world.balancers.items():
        targets = Counter(str(t.state) for t in view.value)
        load = sum(t.in_flight or 0 for t in view.value)
        yield f"{name:<10} {_counted(targets)}, {plural(load, 'request')} in flight; {_read(view, world.now)}"
    for part, sold in world.offerings.items():
        available = sum(o.available for o in sold.value)
        yield f"offerings  {part}: {len(sold.value)}, {available} to be had; {_read(sold, world.now)}"
    written = "can be written" if world.durable else "cannot be written"
    leading = "held" if world.leading else "not held"
    if world.failsafe_since is not None:
        leading = f"out since the database fell silent {world.now - world.failsafe_since:.0f} s before"
    yield f"daemon     the journal {written}, the lease is {leading}, epoch {world.epoch}"


def _memory(scene: Scene) -> Iterator[str]:
    memory = scene.memory
    going = sum(s.stage != "done" for s in memory.swaps.values())
    yield (
        f"remembered {plural(len(memory.nodes), 'node')}, {plural(len(memory.intents), 'open call')}, "
        f"{plural(going, 'swap')} under way, {plural(len(memory.refusals), 'refusal')}, "
        f"{plural(len(memory.reclaims), 'placement')} with reclaims"
    )


def _plan(plan: JsonPlan) -> Iterator[str]:
    if "raised" in plan:
        yield f"nothing: it raised {plan['raised']}, which ended the daemon"
        return
    for action in plan["actions"]:
        yield f"{_what(action)}: {action['reason']}"
    if not plan["actions"]:
        yield "no action"
    phases = Counter(target["phase"] for target in plan["targets"])
    write = f"; written to {', '.join(plan['write'])}" if plan["write"] else ""
    yield f"target set: {_counted(phases)}{write}"
    for held in plan["deferred"]:
        yield f"held back: {_what(held)}: {held['reason']}"


def _what(thing: dict[str, Any]) -> str:
    place = thing.get("placement")
    where = f" {place['market']} {place['instance_type']} in {place['zone']}" if place else ""
    return (
        f"{thing['kind']} {thing.get('node') or thing.get('token') or thing.get('name') or ''}".strip()
        + where
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _read(view: Observed[Any], now: float) -> str:
    when = "never read" if view.at is None else f"read {now - view.at:.1f} s before"
    return f"{when} ({view.error})" if view.error else when


def _span(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return ""
    return f"{instant(first)} to {instant(last)} ({age(last - first)})"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _text(lines: list[str]) -> str:
    return "\n".join(clean(line) for line in lines) + "\n"
