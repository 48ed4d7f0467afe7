"""When a noticed node stops taking requests, and when a drained node may end.

What it decides: the instant a node leaves the target set before its deadline, the deadline its requests
get, and whether a draining node is done.
Why: taking a node out early gives its requests the most time; but where the nodes that remain are too few
to carry the load, a noticed node that keeps serving is worth more than an idle one. So:

* early (the rule): drain at once when at least `min_serving` units go on serving without it, or when enough
  others are ready;
* late: otherwise keep serving until a replacement is ready or until `deadline - margin - budget`, the last
  instant at which requests in flight still get their whole budget;
* leisurely: a deadline farther away than a boot takes (planned maintenance) is no reason to serve with fewer
  nodes: the node serves until its replacement is ready, or until the last instant. Spot is never taken away
  with so much warning: there such a deadline means that this host's clock is wrong.

With a notice of 120 s, a budget of 30 s and a margin of 5 s a late drain begins 85 s after the notice; with
30 s of notice there is nothing to wait for and it begins at once; with 0 s the budget is what is left.
Never: a drain deadline later than the notice's deadline less the margin. A node is not ended before it was
idle for the settle time since its detachment was acknowledged (counters lag, and the first zero is not yet
the end: its requests are counted once more after that time), nor while it may get requests
(`policies.evidence`). A drain that ran out of time, counted from when its node left the target set, ends the
node; a noticed one is left to the cloud until the cloud's own deadline: ending it sooner would cut requests
and save nothing, unless it is stopped or dead for long (`policies.evidence`).

Example:
    >>> from policies.model import DrainRules
    >>> latest_start(DrainRules(budget=30.0, margin=5.0), now=0.0, deadline=120.0)
    85.0
    >>> latest_start(DrainRules(budget=30.0, margin=5.0), now=0.0, deadline=30.0)
    0.0
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from policies.actions import Cause
from policies.model import TAKES_SPOT, DrainRules, Phase, Pool
from policies.node import Node


def latest_start(rules: DrainRules, *, now: float, deadline: float) -> float:
    """The last instant to begin a drain so that requests get their whole budget; not before `now`."""
    return max(now, deadline - rules.margin - rules.budget)


def next_start(pool: Pool, nodes: Iterable[Node], now: float) -> float:
    """When the first of the noticed nodes that serve on has to begin its drain; infinite where none does."""
    latest = (
        latest_start(pool.drain, now=node.notice.seen_at, deadline=node.notice.deadline)
        for node in nodes
        if node.notice is not None and node.notice.deadline is not None and node.drain is None
    )
    return min((at for at in latest if at > now), default=math.inf)


def drain_deadline(rules: DrainRules, *, now: float, deadline: float | None) -> float:
    """Until when requests in flight may finish, given the notice's deadline (None: there is none)."""
    if deadline is None:
        return now + rules.budget
    return max(now, deadline - rules.margin)


def begins_now(pool: Pool, node: Node, *, now: float, serving_without: int, ready: int) -> bool:
    """True when a noticed node should drain in this turn.

    `serving_without` are the units of the other nodes that serve and answer, `ready` those that may be relied
    on.
    """
    notice = node.notice
    if notice is None or not node.may_be_sent or notice.deadline is None or ready >= pool.replicas:
        return True
    latest = latest_start(pool.drain, now=notice.seen_at, deadline=notice.deadline)
    planned = notice.kind not in TAKES_SPOT
    if planned and latest - notice.seen_at > pool.health.boot_timeout:
        return now >= latest
    return serving_without >= pool.min_serving or now >= latest


def why_it_stays(node: Node) -> str:
    """Why a node may not be ended now; empty when it surely holds no requests.

    A dead one leaves the target sets first all the same: it may answer the next moment.
    """
    routed, holds, stopped = node.routed, node.holds_requests, node.phase is Phase.STOPPED
    if node.never_served:
        return ""
    if not stopped and node.may_be_sent:
        return "a balancer may still send it requests"
    lately = node.evidence.let_go_lately(node.token, node.ready_at, node.detached_at)
    if not stopped and node.drain is None and lately:
        return "it may hold requests from before it left a target set"
    return routed.reason if holds.open and routed.open else ""


def finished(rules: DrainRules, node: Node) -> bool:
    """True when a draining node holds no request any more, or its time is up.

    Requests have their budget again after a start: the clock may have been set forward while nobody counted.
    """
    if node.drain is None:
        return False
    since = math.inf if node.idle_since is None else node.idle_since
    evidence = node.evidence
    if not node.serving and evidence.counted_at(node.id) - since >= rules.settle:
        return True
    return evidence.now >= max(ends_at(rules, node), evidence.watched_since(-math.inf) + rules.budget)


def ends_at(rules: DrainRules, node: Node) -> float:
    """When a draining node is ended although it holds requests.

    They have their budget from when the node left the target set: it may have had to serve on for a while. An
    operator's is never shorter than `settle`, as a slow balancer may send requests for so long.
    """
    if node.drain is None:
        return float("inf")
    since = max(node.drain.since, node.detached_at or node.drain.since)
    if node.notice is not None and node.notice.deadline is not None:
        return max(node.notice.deadline, since + rules.budget)  # the cloud takes it at the deadline
    given = node.drain.deadline - node.drain.since
    # What is left of a notice is no budget: this one does not hold any more.
    return since + max(given, rules.budget if node.drain.cause is Cause.NOTICE else rules.settle)
