"""How a node that is to be replaced for its GPUs changes memory. See `policies.gpu_health`.

What it decides: nothing. It remembers the request, as it does one of an operator, and how many there were.
Why: limits on how many nodes go must hold over restarts of the daemon.
Never: a doubt takes the place of what an operator asked for; one that is urgent does.

Example: a node that an operator has cordoned breaks: it goes at once, and not when its replacement is ready.
"""

from __future__ import annotations

from policies.actions import Cause
from policies.events import GpuAcquitted, GpuCondemned
from policies.memory_builder import MemoryBuilder
from policies.records import Condemned, OperatorRequest

KEPT_FOR = 86_400.0
"""Seconds for which it is remembered."""

KEPT = 64
"""Entries that are remembered at most."""


def condemned(builder: MemoryBuilder, event: GpuCondemned) -> None:
    """A node is to go, at once or when its replacement is ready."""
    record = builder.get("nodes").get(event.node)
    if record is None:
        return
    entry = Condemned(at=event.at, node=event.node, reason=event.reason, fault=bool(event.remedy))
    lately = (c for c in builder.get("condemned") if event.at - c.at < KEPT_FOR)
    builder.set("condemned", (*lately, entry)[-KEPT:])
    if record.operator is None or event.urgent:
        cause = Cause.GPU if event.urgent else Cause.GPU_DOUBT
        request = OperatorRequest(since=event.at, budget=event.budget, reason=event.reason, cause=cause)
        builder.node(event.node, operator=request)


def acquitted(builder: MemoryBuilder, event: GpuAcquitted) -> None:
    """It need not go. That it was to counts as one more within the day all the same."""
    record = builder.get("nodes").get(event.node)
    if record is not None and record.operator is not None and record.operator.cause is Cause.GPU_DOUBT:
        builder.node(event.node, operator=None)
