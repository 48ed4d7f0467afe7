"""Calls on machines in memory: when they are asked, and what their outcomes say of what they asked for.

What it decides: whether a call is asked again, and which memory its failure leaves: a refusal or a quota of
the placement, a failed boot, a pause of the market (`policies.bars`), or nothing.
Why: only a want of capacity says anything of capacity. Too many calls say nothing of the call that met them.
Never: a call that met too many calls is given up for that, however often; a launch that may have taken effect
is forgotten before a list would have shown its machine.

Example: six launches fail in a row with an error of no known kind: the placement counts as refused. Six that
were throttled are asked a seventh time.
"""

from __future__ import annotations

from policies import bars
from policies.actions import ActionKind, Cause
from policies.events import IntentClosed, IntentOpened, Outcome
from policies.memory_builder import MemoryBuilder
from policies.model import Placement, StandbyKind
from policies.records import Intent
from policies.value import replace

ATTEMPTS = 6
"""Times that a call which surely did nothing is repeated before it is given up."""

LAUNCH_WINDOW = 60.0
"""Seconds over which launches are counted for the rate limit."""

LANDS_WITHIN = 300.0
"""Seconds after which no list lacks the machine of a launch: one that shows up later is adopted."""

_OF_NO_USE = (Outcome.DENIED, Outcome.MISCONFIGURED)
"""Asking again does not help before somebody has changed something."""


def opened(builder: MemoryBuilder, event: IntentOpened) -> None:
    """A call is about to be made, for the first time or again."""
    intents = builder.mapping("intents")
    known: Intent | None = intents.get(event.token)
    asked = Intent(
        token=event.token,
        kind=event.kind,
        node=event.node,
        at=event.at,
        asked_at=event.at,
        placement=event.placement,
        standby=event.standby,
        replaces=event.replaces,
        price=event.price,
        cause=event.cause,
        reason=event.reason,
    )
    if known is not None:
        asked = replace(
            asked,
            at=known.at,
            attempts=known.attempts + 1,
            throttled=known.throttled,
            landed=known.landed,
        )
    elif event.kind is ActionKind.LAUNCH:
        builder.set("serial", builder.get("serial") + 1)
        launches = builder.launches()
        if launches and event.at - launches[0] >= LAUNCH_WINDOW:
            launches[:] = [t for t in launches if event.at - t < LAUNCH_WINDOW]
        launches.append(event.at)
    elif event.kind is ActionKind.START:
        builder.node(event.node, standby=None, started_at=event.at, ready_at=None)
    intents[event.token] = asked
    if event.replaces in builder.get("nodes"):
        builder.open_swap(event.replaces, Cause.NOTICE, event.at)
    builder.pair(event.replaces, event.node or event.token)


def closed(builder: MemoryBuilder, event: IntentClosed) -> None:
    """A call came back."""
    intent: Intent | None = builder.get("intents").get(event.token)
    if intent is None:
        _closed_late(builder, event)
        return
    intents = builder.mapping("intents")
    if event.outcome is Outcome.DONE:
        node = event.node or intent.node
        intents[event.token] = replace(intent, accepted_at=event.at, unanswered=False, landed=True, node=node)
        if intent.placement is not None:
            bars.accepted(builder, intent, intent.placement, event.at)
        return
    if event.outcome in _OF_NO_USE and intent.placement is not None:
        place, since = intent.placement, intent.asked_at
        bars.denied(builder, place, event.at, event.detail, since=since, token=event.token)
    landed = intent.landed or event.outcome is Outcome.UNCERTAIN
    if _asked_again(intent, event, landed=landed):
        throttled = intent.throttled + (event.outcome is Outcome.THROTTLED)
        intents[event.token] = replace(intent, unanswered=True, landed=landed, throttled=throttled)
        return
    intents.pop(event.token)
    builder.unpair(event.token)
    placement = intent.placement
    if intent.kind is ActionKind.START and intent.node in builder.get("nodes"):
        # The standby did not start: it is a standby again, and its placement is avoided for a while.
        builder.unpair(intent.node)
        denied_at = event.at if event.outcome in _OF_NO_USE else None
        builder.node(intent.node, standby=StandbyKind.STOPPED, denied_at=denied_at)
        placement = builder.get("nodes")[intent.node].placement
    if placement is not None:
        _failed(builder, event, placement, since=intent.at)


def _closed_late(builder: MemoryBuilder, event: IntentClosed) -> None:
    """A call was made again and came back once the machine of the first one was seen. That it was not allowed
    holds for the launches after it."""
    if event.outcome in _OF_NO_USE:
        for record in [r for r in builder.get("nodes").values() if r.token == event.token]:
            place, since = record.placement, record.launched_at
            bars.denied(builder, place, event.at, event.detail, since=since, token=event.token)


def _asked_again(intent: Intent, event: IntentClosed, *, landed: bool) -> bool:
    """The same call is repeated: a launch, too, for as long as its machine may be there and not listed."""
    launch = intent.kind is ActionKind.LAUNCH
    match event.outcome:
        case Outcome.UNCERTAIN | Outcome.THROTTLED:
            return True
        case Outcome.FAILED:
            return (launch and landed) or intent.attempts - intent.throttled < ATTEMPTS
        case Outcome.DENIED | Outcome.MISCONFIGURED if launch:
            return landed and event.at - intent.at < LANDS_WITHIN
        case Outcome.DENIED | Outcome.MISCONFIGURED:
            return intent.kind is not ActionKind.START and intent.attempts - intent.throttled < ATTEMPTS
    return False


def _failed(builder: MemoryBuilder, event: IntentClosed, placement: Placement, *, since: float) -> None:
    """What a call that is given up says of the placement. `since`: when it was asked for first."""
    match event.outcome:
        case Outcome.QUOTA:
            builder.mapping("quota_at")[placement] = event.at
            builder.spot_lost(placement, event.at)
        case Outcome.DIED:
            builder.boot_failed(placement, event.at, since=since)
            bars.faulted(builder, placement, event.at, event.detail)
        case Outcome.REFUSED | Outcome.FAILED:
            builder.refused(placement, event.at)
