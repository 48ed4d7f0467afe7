"""The hot swap: what happens to a node that must go, step by step.

What it decides: which noticed or unwanted nodes drain in this turn, which drained ones end, and which drains
are taken back.
Why: order is everything. A node leaves the target set first (`drain`), then its requests finish, then it
ends; and where time allows its replacement is ready before it leaves. A noticed node is paired with what
takes its place (`Launch.replaces`), so that `history` can say how long each stage took; of several smaller
nodes that take its place the first is named.
Never: a node that may be at work (`policies.evidence`) is ended, so the last one that serves never is. Drains
that an operator asked for go no faster than the disruption budget, and below wanted or below the on-demand
floor only when no replacement came within a boot time-out. Nor do those for a GPU that is only doubted, and
these wait for their replacement however long; one with a broken GPU waits for none while others serve.

Serving, ready and wanted are counted in units.

Example: with 10 nodes serving and `min_serving` 8, three notices at once drain the two earliest deadlines at
once; the third node keeps serving until a replacement serves or its latest start comes.
"""

from __future__ import annotations

from policies import disruption
from policies import drain as draining
from policies.actions import ActionKind, Cause
from policies.model import InstanceState, NoticeKind, Phase
from policies.node import ENDING, Node
from policies.plan_builder import Turn
from policies.records import Intent, intent_key

_LANDS_WITHIN = 3.0
"""A call without an answer has taken effect within so many times `effect_timeout`, or never will."""


def drain_noticed(turn: Turn) -> None:
    """Begin the drain of noticed nodes, earliest deadline first; late ones keep serving."""
    rules = turn.pool.drain
    noticed = [n for n in turn.fleet.nodes if n.notice is not None]
    noticed = [n for n in noticed if n.phase not in ENDING]
    for node in sorted(noticed, key=_deadline):
        notice = node.notice
        if notice is None:
            continue
        deadline = draining.drain_deadline(rules, now=turn.now, deadline=notice.deadline)
        left = "" if notice.deadline is None else f", {max(0.0, notice.deadline - turn.now):.0f} s left"
        reason = f"{_name(notice.kind)} ({notice.source}){left}"
        if node.drain is None:
            turn.drain(node, deadline, Cause.NOTICE, reason)
        elif notice.deadline is not None and deadline < node.drain.deadline:
            turn.hasten(node, deadline, reason)


def put_back(turn: Turn) -> None:
    """Put nodes back to work whose drain has no cause any more, those that may stay before those needed."""
    out = [n for n in turn.fleet.nodes if n.phase is Phase.DRAINING]
    for node in sorted(out, key=lambda n: disruption.over(n) is None):
        if why := disruption.why_back(turn, node):
            turn.undrain(node, why)


def drain_asked(turn: Turn) -> None:
    """Drain what an operator or a GPU asked for once a replacement is ready.

    A cordoned node does not count as capacity, so its replacement is launched while it goes on serving. Spot
    that stands in for on-demand is none for a node that the floor needs.
    """
    for node in turn.fleet.nodes:
        request = node.operator
        if request is None or node.notice is not None or node.phase in ENDING:
            continue
        turn.drain(node, turn.now + request.budget, request.cause, request.reason)


def end_drained(turn: Turn) -> None:
    """End draining nodes that are done."""
    for node in turn.fleet.nodes:
        if node.phase is Phase.TERMINATING:
            _ask_again(turn, node)
        elif node.drain is None or node.phase is Phase.GONE or node.id in turn.returning:
            continue
        elif done := _done(turn, node):
            turn.terminate(node, node.drain.cause, f"{done} ({node.drain.reason})")


def _done(turn: Turn, node: Node) -> str:
    """Why a draining node may end; empty while it holds requests, or may."""
    if node.ready_at is None and not node.attached and not node.holds_requests.open:
        return "it never took a request"
    if draining.finished(turn.pool.drain, node):
        idle = node.idle_since is not None
        return "drained" if idle else f"drain deadline passed with {node.in_flight} requests in flight"
    noticed = node.notice is not None or (node.drain is not None and node.drain.cause is Cause.NOTICE)
    since = node.detached_at if noticed and not node.serving else None
    had_its_time = since is not None and turn.now - since >= turn.pool.drain.budget
    return "it has answered nobody for long" if had_its_time and not node.holds_requests.open else ""


def _ask_again(turn: Turn, node: Node) -> None:
    """A termination that shows no effect is asked for again. What has taken up work drains first.

    What answers although it was to end, and is needed, is put back to work where its end surely did nothing.
    Until that is known, and until somebody has looked at it, it stays what it is as a target.
    """
    intent = turn.memory.intents.get(intent_key(node.id, ActionKind.TERMINATE))
    if intent is None or not intent.due(turn.now, turn.pool.patience.effect_timeout):
        return
    in_vain = intent.unanswered and (not intent.landed or _outlived(turn, node, intent))
    if (in_vain or _serves_on(node)) and _could_work(node) and not turn.enough_without(node):
        filled = turn.launched and turn.budget.full  # what takes its place may have filled the pool just now
        if in_vain and node.heard.known and not filled:
            turn.undrain(node, "what stays is too little, and it was to end and did not")
        else:
            turn.undecided.add(node.id)
        return
    rules, cause = turn.pool.drain, intent.cause or Cause.EXCESS
    idle = node.drain is None and node.in_flight == 0
    if idle or _done(turn, node):
        turn.terminate(node, cause, "termination asked for again: the node is still there")
    else:
        turn.drain(node, turn.now + rules.budget, cause, "it should end, and has taken up work")


def _outlived(turn: Turn, node: Node, intent: Intent) -> bool:
    """True for a node that runs by the newest list although its end was asked for so long ago.

    An old journal may be the last to tell of a call, and of nothing that came after.
    """
    asked_for = turn.now - intent.asked_at
    instance = turn.evidence.listed.get(node.id)
    runs = instance is not None and instance.state is InstanceState.RUNNING
    return runs and asked_for >= _LANDS_WITHIN * turn.pool.patience.effect_timeout


def _serves_on(node: Node) -> bool:
    """True for one that works, does not drain, and may not end after all."""
    works = node.drain is None and (node.in_flight > 0 or node.may_be_sent)
    return works and node.end_unconfirmed


def _could_work(node: Node) -> bool:
    """True for a node that is to end, and that nobody else takes away, if it answers.

    Until somebody has looked at it a balancer's word counts.
    """
    if node.notice is not None or node.operator is not None or node.aside:
        return False
    if not node.heard.known:
        return node.end_unconfirmed and node.found_healthy
    return node.heard.holds and node.ready_at is not None


def _deadline(node: Node) -> tuple[float, str]:
    notice = node.notice
    if notice is None or notice.deadline is None:
        return 0.0, node.id
    return notice.deadline, node.id


def _name(kind: NoticeKind) -> str:
    return {NoticeKind.STATE_CHANGE: "state change"}.get(kind, str(kind)) + " notice"
