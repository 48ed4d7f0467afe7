"""Watches that no source is told to forget a notice that is not on disk yet.

Apart from `cloud.sim.checker`: what a queue was told to forget, and no journal has, is lost with the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.events import DaemonStarted, Event, NoticeSeen
from policies.model import Notice

_Key = tuple[str, str, str, bool]


class Acknowledged:
    """`acknowledged` of one pool. `report` takes what breaks.

    `on_disk` says whether the journal, read as it is, tells of a notice: asked where none was heard to be
    written, since a journal that was put back or is damaged may have more than that.
    """

    def __init__(
        self,
        *,
        on_disk: Callable[[Notice], bool],
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
    ) -> None:
        self._on_disk, self._checked, self._report = on_disk, checked, report
        self._written: set[_Key] = set()
        self._acted_on: set[_Key] = set()  # not written yet

    def hear(self, events: Sequence[Event], *, written: bool, on_disk: Sequence[Event] = ()) -> None:
        """What the daemon puts into its journal, or acts on without it: see `Checker.hear`."""
        if any(isinstance(event, DaemonStarted) for event in events):
            self.forget_unwritten()
        self._written.update(_key(event.notice) for event in on_disk if isinstance(event, NoticeSeen))
        if written and not on_disk:
            self._written |= self._acted_on
            self._acted_on.clear()
        told = self._written if written else self._acted_on
        told.update(_key(event.notice) for event in events if isinstance(event, NoticeSeen))

    def forget_unwritten(self) -> None:
        """The daemon ended, and with it what it could not write."""
        self._acted_on.clear()

    def forget(self) -> None:
        """The journal is lost, or an older one is back."""
        self._written.clear()
        self._acted_on.clear()

    def acknowledged(self, notice: Notice) -> None:
        """A source forgets a notice now."""
        self._checked("acknowledged")
        if _key(notice) not in self._written and not self._on_disk(notice):
            text = f"{notice.source} may forget its notice of {notice.node}, which is in no journal"
            self._report("acknowledged", notice.node, text)


def _key(notice: Notice) -> _Key:
    return notice.source, notice.id, notice.node, notice.cancelled
