"""How the plans of two versions differ for one turn, and which class of differences that is.

Plans are compared as plain JSON: actions, targets, and what is to be written. Words (an action's reason,
notes, what is held back) are compared apart. A class is named by what differs and by the state of the node
concerned, never by names of nodes: the same mistake has the same class in every seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

WORDS = ("notes", "deferred")
"""Parts of a plan that only say something."""

SAYS = ("reason",)
"""Fields of an action or a target that only say something."""

HERE, THERE = "only here", "only there"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One turn's plans differ. `signature` names the class, `lines` say it in words with names of nodes."""

    signature: str
    lines: tuple[str, ...]
    nodes: tuple[str, ...] = ()


def compare(here: Json, there: Json, turn: Json) -> Difference | None:
    """The difference of two plans for a turn (as plain JSON); None where they are the same but for words.

    A field that only one version's actions or targets have is no difference.
    """
    odd = next((plan for plan in (here, there) if "raised" in plan or "unreadable" in plan), None)
    if odd is not None:
        return _odd(here, there)
    found = [*_actions(here, there, turn), *_targets(here, there, turn)]
    if not found:
        found = [*_writes(here, there), *_order(here, there)]
    if not found:
        return None
    return Difference(
        signature=" + ".join(sorted({signature for signature, _, _ in found})),
        lines=tuple(line for _, line, _ in found),
        nodes=tuple(sorted({node for _, _, node in found if node})),
    )


def same_words(here: Json, there: Json) -> bool:
    """The plans say the same, whether or not they do the same."""
    return all(here.get(part) == there.get(part) for part in WORDS) and _said(here) == _said(there)


def _said(plan: Json) -> Counter[tuple[Any, ...]]:
    return Counter((_key(a), *(a.get(word) for word in SAYS)) for a in plan.get("actions", ()))


Found = tuple[str, str, str]
"""A part of the signature, the same in words, and the node concerned."""


def _odd(here: Json, there: Json) -> Difference | None:
    """One of them is no plan."""
    if here == there:
        return None
    words = []
    for plan, side in ((here, "here"), (there, "there")):
        for what in ("raised", "unreadable"):
            if what in plan:
                words.append(
                    (f"{what} {side}: {str(plan[what]).split(':')[0][:60]}", f"{side}: {plan[what]}")
                )
    return Difference(
        signature=" + ".join(signature for signature, _ in words), lines=tuple(line for _, line in words)
    )


def _key(action: Json) -> tuple[Any, ...]:
    """What makes two actions the same one. A launch is of no node yet, an alarm is told by its name."""
    if action.get("node"):
        return action["kind"], action["node"], action.get("served_as", "")
    return action["kind"], action.get("token") or action.get("name"), action.get("about", "")


def _actions(here: Json, there: Json, turn: Json) -> Iterator[Found]:
    mine, others = _by_key(here.get("actions", ())), _by_key(there.get("actions", ()))
    for key in [*mine, *(k for k in others if k not in mine)]:
        action, other = mine.get(key), others.get(key)
        some: Json = action or other or {}
        node = some.get("node", "")
        state = state_of(turn, node) if node else ""
        where = f" ({state})" if state else ""
        name = f"{some['kind']} {node or some.get('token') or some.get('name')}"
        if action is None or other is None:
            side = HERE if other is None else THERE
            reason = f": {some['reason']}" if some.get("reason") else ""
            yield f"{_gist(some)} {side}{where}", f"{name} {side}{where}{reason}", node
        elif changed := _changed(action, other):
            was = ", ".join(f"{field} {action[field]!r} here, {other[field]!r} there" for field in changed)
            yield f"{some['kind']} with another {', '.join(changed)}{where}", f"{name}: {was}{where}", node


def _by_key(actions: Sequence[Json]) -> dict[tuple[Any, ...], Json]:
    """Actions by what tells them apart; of several with one key, the first goes with the first."""
    count: Counter[tuple[Any, ...]] = Counter()
    found = {}
    for action in actions:
        key = _key(action)
        found[(*key, count[key])] = action
        count[key] += 1
    return found


def _changed(one: Json, other: Json) -> list[str]:
    """Fields that both have and that differ, without words."""
    return sorted(n for n in one.keys() & other.keys() if n not in SAYS and one[n] != other[n])


def _gist(action: Json) -> str:
    """An action without names: "drain for sick", "launch for short on spot"."""
    words = [str(action["kind"])]
    if action.get("cause"):
        words.append(f"for {action['cause']}")
    if placement := action.get("placement"):
        words.append(f"on {placement['market']}")
    if action.get("standby"):
        words.append(f"as {action['standby']}")
    if action["kind"] == "alarm":
        words.append(str(action.get("name")))
        if action.get("name") == "InvariantViolated":
            words.append(str(action.get("reason", "")).split(":")[0])
    return " ".join(words)


def _targets(here: Json, there: Json, turn: Json) -> Iterator[Found]:
    mine, others = ({t["id"]: t for t in plan.get("targets", ())} for plan in (here, there))
    for node in sorted(mine.keys() | others.keys()):
        one, other = mine.get(node), others.get(node)
        phases = [("absent" if t is None else str(t.get("phase"))) for t in (one, other)]
        where = f" ({state_of(turn, node)})"
        if phases[0] != phases[1]:
            text = f"{phases[0]} here, {phases[1]} there{where}"
            yield f"target {text}", f"target {node} {text}", node
        elif one is not None and other is not None and (changed := _changed(one, other)):
            was = ", ".join(f"{field} {one[field]!r} here, {other[field]!r} there" for field in changed)
            yield f"target with another {', '.join(changed)}{where}", f"target {node}: {was}{where}", node


def _writes(here: Json, there: Json) -> Iterator[Found]:
    """Balancers to write to. Where sets differ, so do these: they count where nothing else does."""
    mine, others = set(here.get("write", ())), set(there.get("write", ()))
    for side, names in ((HERE, mine - others), (THERE, others - mine)):
        if names:
            yield f"write {side}", f"write to {', '.join(sorted(names))} {side}", ""


def _order(here: Json, there: Json) -> Iterator[Found]:
    for part, key in (("actions", _key), ("targets", lambda t: t["id"])):
        if [key(a) for a in here.get(part, ())] != [key(a) for a in there.get(part, ())]:
            yield f"{part} in another order", f"{part} in another order", ""


# -- the state of a node ---------------------------------------------------------------------------


def state_of(turn: Json, node: str) -> str:
    """A node's state in a few words, from what the turn saw and remembered (as plain JSON).

    Only what any version would say of it, and nothing that one of them has judged.
    """
    world, memory = turn.get("world", {}), turn.get("memory", {})
    record = memory.get("nodes", {}).get(node)
    words = [_machine(world, node)]
    if record is None:
        words.append("not remembered")
    else:
        if record.get("standby"):
            words.append(f"{record['standby']} standby")
        if record.get("drain"):
            words.append(f"drains for {record['drain'].get('cause')}")
        if record.get("operator"):
            words.append("asked to drain")
        if any(n.get("kind") != "rebalance" and not n.get("cancelled") for n in record.get("notices") or ()):
            words.append("noticed")
    words.append(_engine(world, node))
    words.append(_routed(world, node))
    if world.get("failsafe_since") is not None:
        words.append("beyond the lease")
    elif not world.get("leading", True):
        words.append("not leading")
    return ", ".join(word for word in words if word)


def _machine(world: Json, node: str) -> str:
    for view in world.get("regions", {}).values():
        for machine in view.get("value", ()):
            if machine.get("id") == node:
                return str(machine.get("state"))
    return "unlisted"


def _engine(world: Json, node: str) -> str:
    reading = world.get("engines", {}).get(node)
    if reading is None:
        return "no probe"
    return ("answers" if reading.get("ok") else "silent") + ("" if reading.get("ready") else ", not ready")


def _routed(world: Json, node: str) -> str:
    found = set()
    for view in world.get("balancers", {}).values():
        found |= {str(t.get("state")) for t in view.get("value", ()) if t.get("id") == node}
    return f"target {'/'.join(sorted(found))}" if found else "no target"
