"""What became of machines that Azure shows no more: it forgets what it deleted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from cloud.ports import Clock
from cloud.tombstones import Entry
from policies.model import Ending, Instance, InstanceState, Market

SHOWN: Final = 600.0
"""Seconds for which a machine that ended is listed."""

_ASKED = "its end was asked for here"
_TAKEN = "it is gone and nobody here asked for it: Azure deletes a spot machine that it takes back"
_LOST = "it is gone and nobody here asked for it"


class Ended:
    """Remembers machines as they were seen last, and how they ended, while this process lives."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, Instance] = {}
        self._asked: set[str] = set()
        self._gone: dict[str, tuple[float, Instance]] = {}

    def seen(self, machine: Instance) -> Instance:
        """A machine as Azure shows it now, with why it ends: what is being deleted no longer says it."""
        known = self._last.get(machine.id)
        if known is not None and machine.state is InstanceState.SHUTTING_DOWN:
            machine = replace(machine, ending=known.ending, ending_why=known.ending_why)
        self._last[machine.id] = machine
        return machine

    def asked(self, node: str) -> None:
        """We are asking for the end of a machine."""
        self._asked.add(node)

    def missed(self, entry: Entry) -> None:
        """Azure knows a machine no more."""
        if entry.name not in self._gone:
            now = self._clock.now()
            self._gone[entry.name] = (now, replace(self._ending(entry), ended_at=now))
        self._last.pop(entry.name, None)
        self._asked.discard(entry.name)

    def forget(self, pool: str, region: str, *, keep: Collection[str]) -> None:
        """Drop what is known of machines that are neither there nor in the ledger."""
        here = [m for m in self._last.values() if (m.pool, m.placement.region) == (pool, region)]
        for machine in here:
            if machine.id not in keep:
                del self._last[machine.id]

    def of(self, entry: Entry) -> Instance:
        """The ended machine of a token."""
        known = self._gone.get(entry.name)
        return self._ending(entry) if known is None else known[1]

    def shown(self, pool: str, region: str, listed: Collection[str]) -> tuple[Instance, ...]:
        """The machines that ended within `SHOWN` and are not listed."""
        now = self._clock.now()
        self._gone = {name: (at, m) for name, (at, m) in self._gone.items() if abs(now - at) < SHOWN}
        return tuple(
            machine
            for name, (_, machine) in self._gone.items()
            if (machine.pool, machine.placement.region) == (pool, region) and name not in listed
        )

    def _ending(self, entry: Entry) -> Instance:
        last = self._last.get(entry.name) or entry.gone()
        if last.ending is not Ending.UNKNOWN:  # it never ran, and Azure said why
            return replace(last, state=InstanceState.TERMINATED)
        if entry.name in self._asked:
            ending, why = Ending.REQUEST, _ASKED
        elif entry.placement.market is Market.SPOT:
            ending, why = Ending.RECLAIM, _TAKEN
        else:
            ending, why = Ending.UNKNOWN, _LOST
        return replace(last, state=InstanceState.TERMINATED, ending=ending, ending_why=why)
