"""The lease of a pair of control hosts: a row in their shared database, renewed before it runs out.

Nobody's time of day is believed, neither this host's nor the database's. The holder counts from before it
asked for a renewal, so that a holder that was frozen knows the moment it wakes up that it may not act. A
standby takes over what it has itself seen without a renewal for the lease's whole length. Both count on
clocks that nobody sets, so the holder always gives up first, and the last fifth of a lease belongs to nobody:
calls that were under way when the holder gave up end in it.

Taking the lease begins a new epoch of the journal in the same transaction: from then on every write of the
old holder is refused, and every balancer refuses its target sets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloud.errors import Denied
from cloud.logger import structlog
from cloud.ports import Clock, LeaseHolder
from orchestrator.journal.database import Backend, Database, Lane, StoreUnavailable, Superseded
from orchestrator.journal.store import raise_epoch

log = structlog.get_logger("lease")

_RENEWALS: Final = 5
"""Renewals within the length of a lease."""

_HOLDS: Final = 0.8
"""Share of its length for which a lease is held."""

_TRY_AGAIN: Final = 0.5
"""Seconds between two tries to renew while the database does not answer, at most."""

_IN_VAIN: Final = 5.0
"""Seconds of tries in vain, without a gap, after which a database surely does not answer a process that may
have been frozen before: within them a connection that was broken is given up and another one tried."""

_GAP: Final = 5.0
"""Seconds between two tries in vain beyond which they do not follow each other: this process was frozen."""


@dataclass(frozen=True, slots=True)
class _Row:
    seat: str
    who: str
    pools: frozenset[str]
    epoch: int
    beat: int
    seconds: float


class SharedLease:
    """`cloud.ports.Lease` on a database. `keep` renews it and is a root task of its holder.

    `seat` is what only one living process can have (see `FileLease.seat`): who holds the lease under the same
    seat is surely dead, and is not waited for. `seconds` is how long the lease lasts without a renewal. The
    database belongs to a daemon that has one of the `pools` that were in it last.
    """

    def __init__(
        self,
        backend: Backend[Any],
        *,
        clock: Clock,
        seat: str,
        pools: Iterable[str],
        seconds: float,
        inline: bool = False,
    ) -> None:
        self._where, self._backend, self._lane = backend.where, backend, Lane(backend, inline=inline)
        self._clock, self._seat, self._pools, self._seconds = clock, seat, set(pools), seconds
        self._who = f"pid {os.getpid()} on {socket.gethostname()}"
        self._seen: tuple[int, int] | None = None  # epoch and beat, as the row had them last
        self._seen_at = 0.0
        self._epoch = 0
        self._until = 0.0
        self._held_up = False
        self._vain: tuple[float, float] | None = None  # first and last of the tries in vain that went on
        self.leader = ""
        """Who leads and since which epoch, in words, as this daemon saw it last; empty when nobody does."""

    async def acquire(self) -> LeaseHolder:
        """Take the lease and begin an epoch. Raises Denied while another holds it, StoreUnavailable."""
        row = await self._lane.run(_look)
        if row.pools and self._pools and self._pools.isdisjoint(row.pools):
            raise StoreUnavailable(
                f"{self._where}: is the journal of {_names(row.pools)}; give {_names(self._pools)} a "
                "database of its own"
            )
        if (row.epoch, row.beat) != self._seen:
            self._seen, self._seen_at = (row.epoch, row.beat), self._clock.steady()
        self.leader = f"{row.who} (epoch {row.epoch})" if row.seat else ""
        silent = self._clock.steady() - self._seen_at
        if row.seat not in ("", self._seat) and silent <= row.seconds:
            raise Denied(f"{self._where}: {self.leader} leads")
        asked, now = self._clock.steady(), self._clock.now()
        try:
            self._epoch = await self._lane.run(lambda db: self._take(db, row, now))
        except StoreUnavailable:
            self._held_up = True
            raise
        self._held_up = False
        self._until = asked + _HOLDS * self._seconds
        self.leader = f"{self._who} (epoch {self._epoch})"
        return LeaseHolder(who=self._who, epoch=self._epoch)

    def _take(self, db: Database, row: _Row, now: float) -> int:
        """Put our name into the row, if it is still as it was seen, past those who hold that up."""
        if self._held_up:
            self._backend.evict(db)
        ours = (self._seat, self._who, ",".join(sorted(self._pools)), self._seconds)
        taken = db.execute(
            "UPDATE lease SET seat=?, who=?, pool=?, seconds=?, beat=0 WHERE epoch=? AND beat=? AND seat=?",
            (*ours, row.epoch, row.beat, row.seat),
        ).rowcount
        if not taken:
            raise Denied(f"{self._where}: another daemon took the lease first")
        epoch = raise_epoch(db, now)
        db.execute("UPDATE lease SET epoch=?", (epoch,))
        return epoch

    async def renew(self) -> None:
        """Hold it for longer. Raises Superseded when another has it now, StoreUnavailable."""
        asked = self._clock.steady()
        try:
            row = await self._lane.run(self._beat)
        except StoreUnavailable:
            self._tried_in_vain()
            raise
        self._vain = None
        if row is not None:
            self._until = 0.0
            who = row.who or "another daemon"
            raise Superseded(f"{self._where}: {who} took over (epoch {row.epoch}, ours is {self._epoch})")
        self._until = asked + _HOLDS * self._seconds

    def _beat(self, db: Database) -> _Row | None:
        """Count one renewal; the row where it is not ours any more."""
        renewed = db.execute(
            "UPDATE lease SET beat=beat+1 WHERE epoch=? AND seat=?", (self._epoch, self._seat)
        ).rowcount
        return None if renewed else _look(db)

    async def keep(self) -> None:
        """Renew it for ever. Raises Superseded once another has it.

        A database that does not answer is asked again and again: the lease may run out meanwhile, and is
        held again after the first answer unless another took it.
        """
        trouble = ""
        while True:
            pause = self._seconds / _RENEWALS
            await self._clock.sleep(min(pause, _TRY_AGAIN) if trouble else pause)
            try:
                await self.renew()
            except Superseded:
                raise
            except StoreUnavailable as error:
                if not trouble:
                    log.error("lease.renew_failed", error=str(error))
                trouble = str(error)
            else:
                if trouble:
                    log.info("lease.renewed")
                trouble = ""

    def valid(self) -> bool:
        """True while this process surely holds it."""
        return self._clock.steady() < self._until

    def _tried_in_vain(self) -> None:
        now = self._clock.steady()
        goes_on = self._vain is not None and now - self._vain[1] <= _GAP
        self._vain = (self._vain[0] if goes_on and self._vain is not None else now, now)

    def unanswered(self) -> float | None:
        """Seconds since the database answered last, once the lease has run out since it does not.

        A process that was frozen has to find this anew: while it slept another may have taken the lease, and
        a database that answers says so before tries in vain have gone on for long enough. One whose tries
        have gone on since the lease was valid was not.
        """
        now = self._clock.steady()
        if self._until == 0.0 or now < self._until or self._vain is None:
            return None
        first, last = self._vain
        if now - last > _GAP or (first > self._until and last - first < _IN_VAIN):
            return None
        return now - (self._until - _HOLDS * self._seconds)

    async def release(self) -> None:
        """Give it up, so that a standby takes over at once; without an answer it runs out. Idempotent."""
        held, self._until = self._until > 0, 0.0
        try:
            if held:
                await self._lane.run(self._leave)
        except StoreUnavailable as error:
            log.warning("lease.release_failed", error=str(error))
        self.close()

    def close(self) -> None:
        """Close the connection and tell nobody, as when the process ends. Idempotent."""
        self._lane.close()

    def _leave(self, db: Database) -> None:
        db.execute("UPDATE lease SET seat='' WHERE epoch=? AND seat=?", (self._epoch, self._seat))


def _look(db: Database) -> _Row:
    values: Sequence[Any] = db.execute("SELECT seat, who, pool, epoch, beat, seconds FROM lease").fetchone()
    seat, who, pools, *rest = values
    return _Row(seat, who, frozenset(filter(None, pools.split(","))), *rest)


def _names(pools: Iterable[str]) -> str:
    names = sorted(pools)
    return f"{'pools' if len(names) > 1 else 'pool'} {', '.join(names)}"
