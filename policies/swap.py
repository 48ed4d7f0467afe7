"""The hot swap: what happens to a node that must go, step by step.

What it decides: which doomed or unwanted nodes drain in this turn, which drained ones end, and which drains
are taken back.
Why: order is everything. A node leaves the target set first (`drain`), then its requests finish, then it
ends; and where time allows its replacement is ready before it leaves. A doomed node is paired with what
takes its place (`Launch.replaces`), so that `history` can say how long each stage took; of several smaller
nodes that take its place the first is named.
Never: a node that can answer is ended while a balancer sends it requests, so the last one that serves never
is; nor is one that this host cannot reach while a balancer finds it healthy and sends it requests. Drains
that an operator asked for go no faster than the disruption budget, and below wanted or below the on-demand
floor only when no replacement came within a boot time-out.

Serving, ready and wanted are counted in units.

Example: with 10 nodes serving and `min_serving` 8, three notices at once drain the two earliest deadlines at
once; the third node keeps serving until a replacement serves or its latest start comes.
"""

from __future__ import annotations

from collections.abc import Set

from policies import balance
from policies import drain as draining
from policies.actions import ActionKind, Cause
from policies.fleet import Node, perhaps_at_work, vouched_for
from policies.model import Market, NoticeKind, Phase
from policies.records import intent_key
from policies.turn import Turn


def drain_doomed(turn: Turn) -> None:
    """Begin the drain of doomed nodes, earliest deadline first; late ones keep serving."""
    rules = turn.pool.drain
    doomed = [n for n in turn.fleet.nodes if n.doomed is not None]
    doomed = [n for n in doomed if n.phase not in (Phase.TERMINATING, Phase.GONE)]
    serving = sum(n.units for n in turn.fleet.nodes if n.serving and n.healthy and n.drain is None)
    for node in sorted(doomed, key=_deadline):
        notice = node.doomed
        if notice is None:
            continue
        deadline = draining.drain_deadline(rules, now=turn.now, deadline=notice.deadline)
        left = "" if notice.deadline is None else f", {max(0.0, notice.deadline - turn.now):.0f} s left"
        reason = f"{_name(notice.kind)} ({notice.source}){left}"
        if node.drain is not None:
            if notice.deadline is not None and deadline < node.drain.deadline:
                turn.hasten(node, deadline, reason)
            continue
        serves = node.units if node.serving and node.healthy else 0
        others = serving - serves
        ready = turn.sure_in_all
        if draining.begins_now(turn.pool, node, now=turn.now, serving_without=others, ready=ready):
            serving -= serves
            turn.drain(node, deadline, Cause.NOTICE, reason)
        else:
            noun = turn.pool.noun()
            why = f"{others} other {noun} serve and {ready} are ready, {turn.pool.replicas} are wanted"
            turn.defer(ActionKind.DRAIN, why, node=node.id)
            turn.note(f"{node.id} is doomed and keeps serving: {why}")


def take_back(turn: Turn) -> None:
    """Put nodes back to work whose reason to drain is gone: a cancelled notice, a request taken back."""
    for node in turn.fleet.nodes:
        if node.phase is not Phase.DRAINING or node.drain is None or node.doomed is not None:
            continue
        if not node.answers or node.operator is not None:
            continue
        if node.drain.cause is Cause.NOTICE:
            turn.undrain(node, "its notice no longer holds")
        elif node.drain.cause is Cause.OPERATOR:
            turn.undrain(node, "the drain request was taken back")


def drain_asked(turn: Turn) -> None:
    """Drain what an operator asked for once a replacement is ready, or when none came within a boot time-out.

    A cordoned node does not count as capacity, so its replacement is launched while it goes on serving. Spot
    that stands in for on-demand is none for a node that the floor needs. A node that only this host cannot
    reach is at work.
    """
    serving = sum(n.units for n in turn.fleet.nodes if n.serving and n.healthy and n.id not in turn.leaving)
    asked = [n for n in turn.fleet.nodes if n.operator is not None and n.drain is None and n.doomed is None]
    asked = [n for n in asked if n.phase not in (Phase.TERMINATING, Phase.GONE)]
    works = {n.id for n in asked if n.phase is Phase.READY and n.healthy and n.standby is None}
    vouched = vouched_for(turn.world)
    capacity = turn.sure_in_all + sum(n.units for n in asked if n.id in works)
    on_demand = turn.sure(Market.ON_DEMAND) + sum(n.units for n in asked if n.id in works and not n.spot)
    for node in asked:
        request = node.operator
        if request is None:
            continue
        if node.id not in works | vouched and not perhaps_at_work(turn.world, node):
            turn.drain(node, turn.now + request.budget, Cause.OPERATOR, request.reason)
            continue
        counted = node.units if node.id in works else 0
        replaced = capacity - counted >= turn.pool.replicas
        replaced = replaced and (node.spot or on_demand - counted >= turn.pool.on_demand_floor)
        waited = turn.now - request.since >= turn.pool.health.boot_timeout
        due = waited and serving - node.serving * node.units >= turn.pool.min_serving
        if not (replaced or due):
            turn.note(f"{node.id}: drain asked for; it serves until its replacement is ready")
        elif not turn.may_choose(node.units):
            noun = turn.pool.noun()
            turn.note(f"{node.id}: drain asked for; {turn.by_choice} {noun} are draining by choice already")
        elif turn.drain(node, turn.now + request.budget, Cause.OPERATOR, request.reason):
            capacity -= counted
            on_demand -= counted if not node.spot else 0
            serving -= node.units if node.serving and node.healthy else 0


def end_drained(turn: Turn) -> None:
    """End draining nodes that are done; a node that may still get requests and answers them stays."""
    routed, vouched = balance.shown_active(turn), vouched_for(turn.world)
    for node in turn.fleet.nodes:
        if node.phase is Phase.TERMINATING:
            if not _may_serve(turn, node, vouched, routed):
                _ask_again(turn, node)
            continue
        if node.drain is None or node.phase is Phase.GONE or node.id in turn.returning:
            continue
        if not draining.finished(turn.pool.drain, node, now=turn.now):
            continue
        if node.serving and node.healthy:
            turn.note(f"{node.id} should end and is still in a target set: it stays")
            continue
        if _may_serve(turn, node, vouched, routed):
            turn.note(f"{node.id} should end; it stays until every balancer has let it go")
            continue
        if node.ready_at is None and not node.attached:
            text = "it never took a request"
        elif node.idle_since is not None:
            text = "drained"
        else:
            text = f"drain deadline passed with {node.in_flight} requests in flight"
        turn.terminate(node, node.drain.cause, f"{text} ({node.drain.reason})")


def _may_serve(turn: Turn, node: Node, vouched: Set[str], routed: Set[str]) -> bool:
    """True for a node that answers, or may do so, and that some balancer may still send requests to.

    A balancer's own word since the detachment counts, not its acknowledgement: that may be forgotten again.
    """
    reading = turn.world.engines.get(node.id)
    unheard = reading is None and bool(node.address)  # nobody has looked since the daemon started
    answers = unheard or node.id in vouched or (reading is not None and reading.ready and reading.ok)
    return answers and (node.id in routed or _unread(turn, node))


def _unread(turn: Turn, node: Node) -> bool:
    """True when some balancer was not read since it acknowledged that the node is out, or never."""
    detached_at = node.detached_at or 0.0
    return any(view.at is None or view.at < detached_at for view in turn.world.balancers.values())


def _ask_again(turn: Turn, node: Node) -> None:
    """A termination that shows no effect is asked for again."""
    intent = turn.memory.intents.get(intent_key(node.id, ActionKind.TERMINATE))
    if intent is not None:
        cause = intent.cause or Cause.EXCESS
        turn.terminate(node, cause, "termination asked for again: the node is still there")


def _deadline(node: Node) -> tuple[float, str]:
    notice = node.doomed
    if notice is None or notice.deadline is None:
        return 0.0, node.id
    return notice.deadline, node.id


def _name(kind: NoticeKind) -> str:
    return {NoticeKind.STATE_CHANGE: "state change"}.get(kind, str(kind)) + " notice"
