"""When a doomed node stops taking requests, and when a drained node may end.

What it decides: the instant a node leaves the target set before its deadline, the deadline its requests
get, and whether a draining node is done.
Why: taking a node out early gives its requests the most time; but where the nodes that remain are too few
to carry the load, a doomed node that keeps serving is worth more than an idle one. So:

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
(`policies.at_work`). A drain that ran out of time, counted from when its node left the target set, ends the
node; a doomed one is left to the cloud until the cloud's own deadline: ending it sooner would cut requests
and save nothing, unless it is stopped or dead for long (`policies.at_work`).

Example:
    >>> from policies.model import DrainRules
    >>> latest_start(DrainRules(budget=30.0, margin=5.0), now=0.0, deadline=120.0)
    85.0
    >>> latest_start(DrainRules(budget=30.0, margin=5.0), now=0.0, deadline=30.0)
    0.0
"""

from __future__ import annotations

import math

from policies.actions import Cause
from policies.fleet import Node
from policies.model import TAKES_SPOT, DrainRules, Pool, World


def latest_start(rules: DrainRules, *, now: float, deadline: float) -> float:
    """The last instant to begin a drain so that requests get their whole budget; not before `now`."""
    return max(now, deadline - rules.margin - rules.budget)


def drain_deadline(rules: DrainRules, *, now: float, deadline: float | None) -> float:
    """Until when requests in flight may finish, given the notice's deadline (None: there is none)."""
    if deadline is None:
        return now + rules.budget
    return max(now, deadline - rules.margin)


def begins_now(pool: Pool, node: Node, *, now: float, serving_without: int, ready: int) -> bool:
    """True when a doomed node should drain in this turn.

    `serving_without` are the units of the other nodes that serve and answer, `ready` those that may be relied
    on.
    """
    notice = node.doomed
    if notice is None or not node.serving or notice.deadline is None or ready >= pool.replicas:
        return True
    latest = latest_start(pool.drain, now=notice.seen_at, deadline=notice.deadline)
    planned = notice.kind not in TAKES_SPOT
    if planned and latest - notice.seen_at > pool.health.boot_timeout:
        return now >= latest
    return serving_without >= pool.min_serving or now >= latest


def looked_at(world: World, node: str) -> float:
    """When all who may count the requests of a node were last looked at; minus infinity for never.

    Those are its engine and the balancers that can be read.
    """
    reading = world.engines.get(node)
    looks = [None if reading is None else reading.at]
    looks += [view.at for view in world.balancers.values() if not view.error]
    return min(-math.inf if at is None else at for at in looks)


def _counted_at(world: World, node: str) -> float:
    """When the requests of a node were last counted; minus infinity where nobody counts them now."""
    reading = world.engines.get(node)
    answers = reading is not None and reading.ok
    counted = answers or any(t.id == node for view in world.balancers.values() for t in view.value)
    return looked_at(world, node) if counted else -math.inf


def finished(rules: DrainRules, world: World, node: Node) -> bool:
    """True when a draining node holds no request any more, or its time is up.

    Requests have their budget again after a start: the clock may have been set forward while nobody counted.
    """
    if node.drain is None:
        return False
    since = math.inf if node.idle_since is None else node.idle_since
    if not node.serving and _counted_at(world, node.id) - since >= rules.settle:
        return True
    return world.now >= max(ends_at(rules, node), world.awake_since + rules.budget)


def ends_at(rules: DrainRules, node: Node) -> float:
    """When a draining node is ended although it holds requests.

    They have their budget from when the node left the target set: it may have had to serve on for a while.
    """
    if node.drain is None:
        return float("inf")
    since = max(node.drain.since, node.detached_at or node.drain.since)
    if node.doomed is not None and node.doomed.deadline is not None:
        return max(node.doomed.deadline, since + rules.budget)  # the cloud takes it at the deadline
    given = node.drain.deadline - node.drain.since
    # What is left of a notice is no budget: this one does not hold any more.
    return since + (max(given, rules.budget) if node.drain.cause is Cause.NOTICE else given)
