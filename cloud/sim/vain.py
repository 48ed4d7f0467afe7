"""Watches that a daemon does not repeat what a person has to fix first.

Apart from `cloud.sim.checker`: this one looks at what the daemon writes into its journal, with its own
counting, and at nothing that the daemon decided by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from policies.actions import ActionKind
from policies.events import (
    DaemonStarted,
    Event,
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeGone,
    NodeReady,
    NodeSeen,
    Outcome,
    Resumed,
)
from policies.model import Market, Placement, Pool

_PAUSE = 300.0
"""Seconds for which a market is left alone at least."""

_REFUSED = (Outcome.DENIED, Outcome.MISCONFIGURED)

_Key = tuple[str, Market]


@dataclass(slots=True)
class _Told:
    """What a journal says: where and when each launch was asked for, where and when the last one was taken,
    which wait for an answer and since when, where each node is, what was not allowed, boots that failed."""

    asked: dict[str, tuple[Placement, float]] = field(default_factory=dict)
    taken: dict[Placement, float] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, _Key] = field(default_factory=dict)
    denied_at: dict[_Key, float] = field(default_factory=dict)
    failed: int = 0
    ready: bool = False

    def copy(self) -> _Told:
        return replace(
            self,
            asked=self.asked.copy(),
            taken=self.taken.copy(),
            waiting=self.waiting.copy(),
            nodes=self.nodes.copy(),
            denied_at=self.denied_at.copy(),
        )


class InVain:
    """`in-vain` of one pool. `report` takes what breaks."""

    def __init__(
        self, pool: Pool, *, checked: Callable[[str], None], report: Callable[[str, str, str], None]
    ) -> None:
        self._pool, self._checked, self._report = pool, checked, report
        self._told = _Told()
        self._ever: set[str] = set()  # launches that were asked for, also by journals that are lost
        self._written: _Told | None = None  # as it was before the journal could not be written

    def hear(self, events: Sequence[Event], *, written: bool, on_disk: Sequence[Event] = ()) -> None:
        """What the daemon puts into its journal, or acts on without it: see `Checker.hear`."""
        if any(isinstance(event, DaemonStarted) for event in events):
            self.forget_unwritten()
        if on_disk and self._written is not None:
            acted_on, self._told = self._told, self._written
            for event in on_disk:
                self._take(event)
            self._told = acted_on
        elif written:
            self._written = None
        elif self._written is None:
            self._written = self._told.copy()
        for event in events:
            self._take(event)

    def forget_unwritten(self) -> None:
        """The daemon ended, and with it what it could not write."""
        if self._written is not None:
            self._told, self._written = self._written, None

    def forget(self) -> None:
        """The journal is lost, or an older one is back, which may tell of a node that was ready."""
        self._told, self._written = _Told(ready=True), None

    def _take(self, event: Event) -> None:
        told = self._told
        match event:
            case DaemonStarted():  # its clock may be another one
                told.denied_at = {key: min(at, event.at) for key, at in told.denied_at.items()}
            case IntentOpened(kind=ActionKind.LAUNCH, placement=Placement() as placement):
                self._opened(event, placement)
            case IntentClosed(token=token) if token in told.asked:
                self._closed(event)
            case NodeSeen():
                told.waiting.pop(event.token, None)
                if event.token in told.asked:  # it was taken, whether its answer came or not
                    told.taken[event.placement] = event.at
                told.nodes[event.node] = _key(event.placement)
            case NodeReady():
                told.ready = True
                told.denied_at.pop(told.nodes.get(event.node, ("", Market.SPOT)), None)
            case NodeGone():
                told.failed += event.cause is GoneCause.NEVER_STARTED
                told.nodes.pop(event.node, None)
            case Resumed():
                told.failed = 0
                told.denied_at.clear()

    def _opened(self, event: IntentOpened, placement: Placement) -> None:
        told, key = self._told, _key(placement)
        if event.token in told.asked:
            return
        told.asked[event.token] = placement, event.at
        if event.token in self._ever:  # an old journal is back: what became of it must be asked
            told.waiting[event.token] = event.at
            return
        self._ever.add(event.token)
        self._checked("in-vain")
        if not told.ready and told.failed >= self._pool.health.give_up_after:
            self._broken(event, f"{told.failed} boots failed and no node was ever ready")
        denied_at = told.denied_at.get(key)
        if denied_at is not None:
            if event.at - denied_at < _PAUSE:
                self._broken(event, f"it was not allowed {event.at - denied_at:.0f} s ago")
            elif any(_key(told.asked[t][0]) == key and at > denied_at for t, at in told.waiting.items()):
                self._broken(event, "it was not allowed, and another launch tries it already")
        told.waiting[event.token] = event.at

    def _closed(self, event: IntentClosed) -> None:
        told = self._told
        placement, asked_at = told.asked[event.token]
        key = _key(placement)
        told.waiting.pop(event.token, None)
        if event.outcome is Outcome.DONE:
            told.denied_at.pop(key, None)
            told.taken[placement] = event.at
        elif event.outcome in _REFUSED:
            # What works elsewhere meanwhile is the fault of the place, and no reason to leave the market.
            others = (at for place, at in told.taken.items() if place != placement and _key(place) == key)
            if not any(at >= asked_at for at in others):
                told.denied_at[key] = event.at
        told.failed += event.outcome is Outcome.DIED

    def _broken(self, event: IntentOpened, why: str) -> None:
        self._report("in-vain", event.token, f"{event.token} is launched, {event.placement}: {why}")


def _key(placement: Placement) -> _Key:
    return placement.region, placement.market
