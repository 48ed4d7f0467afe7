"""The hot swap: what happens to a node that must go, step by step.

What it decides: which noticed or unwanted nodes drain in this turn, which drained ones end, and which drains
are taken back.
Why: order is everything. A node leaves the target set first (`drain`), then its requests finish, then it
ends; and where time allows its replacement is ready before it leaves. A noticed node is paired with what
takes its place (`Launch.replaces`), so that `history` can say how long each stage took; of several smaller
nodes that take its place the first is named.
Never: a node that may be at work (`policies.at_work`) is ended, so the last one that serves never is. Drains
that an operator asked for go no faster than the disruption budget, and below wanted or below the on-demand
floor only when no replacement came within a boot time-out. Nor do those for a GPU that is only doubted, and
these wait for their replacement however long; one with a broken GPU waits for none while others serve.

Serving, ready and wanted are counted in units.

Example: with 10 nodes serving and `min_serving` 8, three notices at once drain the two earliest deadlines at
once; the third node keeps serving until a replacement serves or its latest start comes.
"""

from __future__ import annotations

from policies import drain as draining
from policies.actions import ActionKind, Cause
from policies.at_work import perhaps_at_work, sends_to
from policies.fleet import Node
from policies.model import InstanceState, Market, NoticeKind, Phase
from policies.reach import vouched_for
from policies.records import Intent, intent_key
from policies.turn import Turn

_LANDS_WITHIN = 3.0
"""A call without an answer has taken effect within so many times `effect_timeout`, or never will."""


def drain_noticed(turn: Turn) -> None:
    """Begin the drain of noticed nodes, earliest deadline first; late ones keep serving."""
    rules = turn.pool.drain
    noticed = [n for n in turn.fleet.nodes if n.doomed is not None]
    noticed = [n for n in noticed if n.phase not in (Phase.TERMINATING, Phase.GONE)]
    for node in sorted(noticed, key=_deadline):
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
        others, ready = turn.serving_without(node), turn.sure_in_all
        if draining.begins_now(turn.pool, node, now=turn.now, serving_without=others, ready=ready):
            turn.drain(node, deadline, Cause.NOTICE, reason)
        else:
            noun = turn.pool.noun()
            why = f"{others} other {noun} serve and {ready} are ready, {turn.pool.replicas} are wanted"
            turn.defer(ActionKind.DRAIN, why, node=node.id)
            turn.note_serving(
                node,
                f"{node.id} is noticed and keeps serving: {why}",
                otherwise=f"{node.id} is noticed and gets no requests; it drains later: {why}",
            )


def take_back(turn: Turn) -> None:
    """Put nodes back to work whose reason to drain is gone: a cancelled notice, a request taken back."""
    for node in turn.fleet.nodes:
        if node.phase is not Phase.DRAINING or node.drain is None or node.doomed is not None:
            continue
        if not node.answers or node.operator is not None:
            continue
        if node.drain.cause is Cause.NOTICE:
            turn.undrain(node, "its notice no longer holds")
        elif node.drain.cause in (Cause.OPERATOR, Cause.GPU, Cause.GPU_DOUBT, Cause.OUTDATED):
            turn.undrain(node, "the drain request was taken back")


def call_back(turn: Turn) -> None:
    """Put nodes back to work that need not drain and still get requests, once what stays is too little.

    Between a decision and the balancer's acknowledgement others may have gone, and an old journal may tell of
    drains that were taken back since. One that does not answer helps nobody, and one that was silent, and had
    to serve on as the last one, does as soon as it answers again.
    """
    able = [n for n in turn.fleet.nodes if n.phase is Phase.DRAINING and _need_not_drain(n)]
    still_sent = sends_to(turn.world, turn.memory) if able else set()
    for node in able:
        if node.id in turn.returning or node.standby is not None:
            continue
        if node.id in still_sent and not _asked_long_ago(turn, node) and _short(turn, node):
            turn.undrain(node, "what stays is too little, and it still gets requests")


def _need_not_drain(node: Node) -> bool:
    """True for a node that drains by choice and may answer, or for a silence or a notice that is over."""
    if node.drain is None or node.doomed is not None:
        return False
    if node.drain.cause in (Cause.SICK, Cause.NOTICE):
        return node.answers
    return node.drain.cause.by_choice and (node.answers or not node.probed)


def _short(turn: Turn, node: Node) -> bool:
    """True when too little may be relied on without a node that need not drain."""
    cordoned = [n for n in turn.fleet.nodes if _sure_cordoned(n) and n.id not in turn.leaving]
    kept = cordoned if node.operator is not None else []
    ready = turn.sure_in_all + sum(n.units for n in kept)
    on_demand = turn.sure(Market.ON_DEMAND) + sum(n.units for n in kept if not n.spot)
    floor = turn.pool.on_demand_floor
    return ready < turn.pool.replicas or (not node.spot and on_demand < floor)


def _held_by_the_rest(turn: Turn, node: Node) -> bool:
    """True for a node that was drained by choice and may answer, while the rest is too little to rely on.

    One that was ready, and that this daemon has not looked at yet, may: nor has it looked at the rest. So it
    is with one whose silence or notice is over, and that an operator wants to go.
    """
    needed = node.ready_at is not None and _need_not_drain(node)
    return needed and not _asked_long_ago(turn, node) and _short(turn, node)


def _works_cordoned(node: Node) -> bool:
    """True for a node that works until its replacement is ready, as an operator asked."""
    asked = node.operator is not None and node.drain is None and node.doomed is None
    return asked and node.phase is Phase.READY and node.healthy and node.standby is None


def _sure_cordoned(node: Node) -> bool:
    """True for such a node that answered the last look and gets requests: what may be relied on till then."""
    return _works_cordoned(node) and node.answers and node.in_service


def drain_asked(turn: Turn) -> None:
    """Drain what an operator or a GPU asked for once a replacement is ready.

    A cordoned node does not count as capacity, so its replacement is launched while it goes on serving. Spot
    that stands in for on-demand is none for a node that the floor needs. A node that only this host cannot
    reach is at work; so may one be of which no journal tells, until balancers were heard, and any that
    serves where so many are silent that the fault may be on this side.
    """
    asked = [n for n in turn.fleet.nodes if n.operator is not None and n.drain is None and n.doomed is None]
    asked = [n for n in asked if n.phase not in (Phase.TERMINATING, Phase.GONE)]
    if not asked:
        return
    works = {n.id for n in asked if _works_cordoned(n)}
    vouched = vouched_for(turn.world)
    sure = [n for n in asked if _sure_cordoned(n)]
    capacity = turn.sure_in_all + sum(n.units for n in sure)
    on_demand = turn.sure(Market.ON_DEMAND) + sum(n.units for n in sure if not n.spot)
    for node in asked:
        request = node.operator
        if request is None:
            continue
        silent = turn.at_work.dead(node, 0.0) and not turn.fleet.suspect
        at_work = node.id in works | vouched or (node.serving and not silent)
        if not (at_work or perhaps_at_work(turn.pool, turn.world, node) or turn.at_work.cannot_tell(node)):
            turn.drain(node, turn.now + request.budget, request.cause, request.reason)
            continue
        counted = node.units if node in sure else 0
        replaced = capacity - counted >= turn.pool.replicas
        replaced = replaced and (node.spot or on_demand - counted >= turn.pool.on_demand_floor)
        if not (replaced or _waits_no_longer(turn, node)):
            turn.note_serving(
                node,
                f"{node.id}: drain asked for; it serves until its replacement is ready",
                otherwise=f"{node.id}: drain asked for; it gets no requests, and waits for its replacement",
            )
        elif request.cause.by_choice and not turn.may_choose(node.units):
            noun = turn.pool.noun()
            turn.note(f"{node.id}: drain asked for; {turn.by_choice} {noun} are draining by choice already")
        elif turn.drain(node, turn.now + request.budget, request.cause, request.reason):
            capacity -= counted
            on_demand -= counted if not node.spot else 0


def _waits_no_longer(turn: Turn, node: Node) -> bool:
    """True for a node that goes before its replacement is ready.

    One that an operator wants to go, when none came within a boot time-out; and one with a broken GPU, which
    may answer wrongly, while another node serves.
    """
    left = turn.serving_without(node)
    broken = node.operator is not None and node.operator.cause is Cause.GPU
    return (broken and left > 0) or (_asked_long_ago(turn, node) and left >= turn.pool.min_serving)


def end_drained(turn: Turn) -> None:
    """End draining nodes that are done."""
    for node in turn.fleet.nodes:
        if node.phase is Phase.TERMINATING:
            _ask_again(turn, node)
            continue
        if node.drain is None or node.phase is Phase.GONE or node.id in turn.returning:
            continue
        done = _done(turn, node)
        if not done:
            continue
        if _held_by_the_rest(turn, node):
            turn.note(f"{node.id} should end; it stays while too little else may be relied on")
            continue
        turn.terminate(node, node.drain.cause, f"{done} ({node.drain.reason})")


def _asked_long_ago(turn: Turn, node: Node) -> bool:
    """True when an operator asked, and none came within a boot time-out in which somebody was awake.

    Of the time before nobody knows how long it was: this host's clock may have been set since.
    """
    if node.operator is None or node.operator.cause is not Cause.OPERATOR:
        return False
    since = max(node.operator.since, turn.world.awake_since)
    return turn.now - since >= turn.pool.health.boot_timeout


def _done(turn: Turn, node: Node) -> str:
    """Why a draining node may end; empty while it holds requests, or may."""
    if node.ready_at is None and not node.attached and turn.at_work.holds_nothing(node):
        return "it never took a request"
    if draining.finished(turn.pool.drain, turn.world, node):
        idle = node.idle_since is not None
        return "drained" if idle else f"drain deadline passed with {node.in_flight} requests in flight"
    noticed = node.doomed is not None or (node.drain is not None and node.drain.cause is Cause.NOTICE)
    since = node.detached_at if noticed and not node.serving else None
    had_its_time = since is not None and turn.now - since >= turn.pool.drain.budget
    return "it has answered nobody for long" if had_its_time and turn.at_work.holds_nothing(node) else ""


def _ask_again(turn: Turn, node: Node) -> None:
    """A termination that shows no effect is asked for again. What has taken up work drains first.

    What answers although it was to end, and is needed, is put back to work where its end surely did nothing.
    Until that is known, and until somebody has looked at it, it stays what it is as a target.
    """
    intent = turn.memory.intents.get(intent_key(node.id, ActionKind.TERMINATE))
    if intent is None or not intent.due(turn.now, turn.pool.patience.effect_timeout):
        return
    in_vain = intent.unanswered and (not intent.landed or _outlived(turn, node, intent))
    if (in_vain or _serves_on(turn, node)) and _could_work(turn, node) and _short(turn, node):
        filled = turn.launched and turn.budget.full  # what takes its place may have filled the pool just now
        if in_vain and node.probed and not filled:
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
    runs = any(i.id == node.id and i.state is InstanceState.RUNNING for i in turn.world.instances)
    return runs and asked_for >= _LANDS_WITHIN * turn.pool.patience.effect_timeout


def _serves_on(turn: Turn, node: Node) -> bool:
    """True for one that works, does not drain, and may not end after all."""
    works = node.drain is None and (node.in_flight > 0 or node.id in turn.at_work.routed)
    return works and turn.at_work.asked_in_vain(node)


def _could_work(turn: Turn, node: Node) -> bool:
    """True for a node that is to end, and that nobody else takes away, if it answers.

    Until somebody has looked at it a balancer's word counts.
    """
    if node.doomed is not None or node.operator is not None or node.standby is not None:
        return False
    if not node.probed:
        return turn.at_work.asked_in_vain(node) and node.id in vouched_for(turn.world)
    reading = turn.world.engines.get(node.id)
    return reading is not None and reading.ok and node.ready_at is not None


def _deadline(node: Node) -> tuple[float, str]:
    notice = node.doomed
    if notice is None or notice.deadline is None:
        return 0.0, node.id
    return notice.deadline, node.id


def _name(kind: NoticeKind) -> str:
    return {NoticeKind.STATE_CHANGE: "state change"}.get(kind, str(kind)) + " notice"
