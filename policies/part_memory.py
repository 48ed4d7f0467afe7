"""How lost parts and changes of the pool's state change memory. See `policies.parts`, `policies.verdict`.

What it decides: nothing. It remembers what was reported, so that a change is reported once, over restarts
too.
Why: the journal is read by people, and holds a change once.
Never: memory grows with the number of losses: a part has one record, and an engine's goes with its node.

Example: a gateway that is lost for the second time within the hour has `times` 2 in its record.
"""

from __future__ import annotations

from policies.events import PartBack, PartLost, StateChanged
from policies.memory_builder import MemoryBuilder
from policies.model import PartKind
from policies.records import LOST_AGAIN_SOON, STATE_WINDOW, PartRecord, StateRecord, part_key
from policies.value import replace


def lost(builder: MemoryBuilder, event: PartLost) -> None:
    """A part is lost; how often in a row is counted."""
    key = part_key(event.kind, event.part)
    known: PartRecord | None = builder.get("parts").get(key)
    if event.kind is PartKind.ENGINE and event.part not in builder.get("nodes"):
        return
    times = 1
    if known is not None and known.back_at is None:
        times = known.times
    elif known is not None and known.back_at is not None and event.at - known.back_at < LOST_AGAIN_SOON:
        times = known.times + 1
    builder.mapping("parts")[key] = PartRecord(
        kind=event.kind, part=event.part, since=event.since, lost_at=event.at, times=times
    )


def back(builder: MemoryBuilder, event: PartBack) -> None:
    """A part is back; that it was lost is remembered for a while."""
    key = part_key(event.kind, event.part)
    known: PartRecord | None = builder.get("parts").get(key)
    if known is not None:
        builder.mapping("parts")[key] = replace(known, back_at=event.at)


def state_changed(builder: MemoryBuilder, event: StateChanged) -> None:
    """The state that was reported last, and when it changed lately."""
    known: StateRecord | None = builder.get("state")
    lately = () if known is None else (t for t in known.changes if event.at - t < STATE_WINDOW)
    builder.set("state", StateRecord(state=event.state, since=event.at, changes=(*lately, event.at)))


def forget_engine(builder: MemoryBuilder, node: str) -> None:
    """The engine of a node that is gone or stopped is neither lost nor back."""
    key = part_key(PartKind.ENGINE, node)
    if key in builder.get("parts"):
        builder.mapping("parts").pop(key)
