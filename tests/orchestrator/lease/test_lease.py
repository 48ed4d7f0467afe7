"""The right to act: what holds of a lock in a state directory and of a row in a shared database."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud.errors import Denied
from cloud.ports import Lease
from orchestrator.journal.database import StoreUnavailable, Superseded
from orchestrator.lease.file import FileLease
from orchestrator.lease.shared import SharedLease, _look
from policies.events import PoolConfigured

LASTS = 10.0


class HandClock:
    """Time that a test moves. `sleep` waits until it was moved far enough."""

    def __init__(self) -> None:
        self.time = 5.0
        self._moved = asyncio.Condition()

    def now(self) -> float:
        return 1000.0 + self.time

    def steady(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        async with self._moved:
            await self._moved.wait_for(lambda: self.time >= until)

    async def pass_by(self, seconds: float) -> None:
        async with self._moved:
            self.time += seconds
            self._moved.notify_all()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


class Leases:
    """Shared leases on one journal."""

    def __init__(self, journal: Any, clock: HandClock) -> None:
        self.journal, self.clock = journal, clock
        self._made: list[SharedLease] = []

    def __call__(
        self, seat: str, *, pool: str = "p", clock: HandClock | None = None, backend: Any = None
    ) -> SharedLease:
        lease = SharedLease(
            self.journal.backend() if backend is None else backend,
            clock=clock or self.clock,
            seat=seat,
            pools=filter(None, pool.split(",")),
            seconds=LASTS,
            inline=self.journal.inline,
        )
        self._made.append(lease)
        return lease

    async def end(self) -> None:
        for lease in self._made:
            await lease.release()


@pytest.fixture
async def shared(journal: Any, clock: HandClock) -> AsyncIterator[Leases]:
    """Makes leases in one database of each kind, each for a daemon of its own."""
    leases = Leases(journal, clock)
    yield leases
    await leases.end()


@pytest.fixture(params=["lock", "file", "file-inline", "postgres"])
async def two(
    request: pytest.FixtureRequest, tmp_path: Path, new_journal: Callable[[str], Any], clock: HandClock
) -> AsyncIterator[tuple[Lease, Lease]]:
    """One lease for two daemons."""
    if request.param == "lock":
        locks = FileLease(tmp_path / "lease", now=1.0), FileLease(tmp_path / "lease", now=2.0)
        yield locks
        for lock in locks:
            lock.close()
        return
    leases = Leases(new_journal(request.param), clock)
    yield leases("a"), leases("b")
    await leases.end()


# -- every lease ---------------------------------------------------------------------------------------


async def test_the_second_is_refused_and_told_who_holds_it(two: tuple[Lease, Lease]) -> None:
    first, second = two
    holder = await first.acquire()
    assert f"pid {os.getpid()} on " in holder.who
    with pytest.raises(Denied, match=rf"pid {os.getpid()} on "):
        await second.acquire()
    assert first.valid()
    assert not second.valid()


async def test_what_is_released_is_free_at_once(two: tuple[Lease, Lease]) -> None:
    first, second = two
    await first.acquire()
    await first.release()
    assert not first.valid()
    await second.acquire()
    assert second.valid()
    await first.release()  # again: it gives up nothing that is not its own
    assert second.valid()


# -- a row in a database -------------------------------------------------------------------------------


async def test_every_holder_begins_an_epoch(shared: Leases) -> None:
    first, second = shared("a"), shared("b")
    store = shared.journal.open()
    assert (await first.acquire()).epoch == 1005  # the time of day
    store.begin_epoch(1005)
    await store.append("p", [PoolConfigured(at=1.0, replicas=1)])
    await first.release()
    assert (await second.acquire()).epoch == 1006
    with pytest.raises(Superseded, match=r"another daemon took over \(epoch 1006, ours is 1005\)"):
        await store.append("p", [PoolConfigured(at=1.0, replicas=2)])


async def test_a_silent_holder_gives_up_before_a_standby_takes_over(shared: Leases, clock: HandClock) -> None:
    """At no time do two hold it, however the looks and the renewals fall."""
    first, second = shared("a"), shared("b")
    await first.acquire()
    gave_up = taken = None
    for _ in range(200):
        await clock.pass_by(0.1)
        with contextlib.suppress(Denied):
            await second.acquire()
        assert not (first.valid() and second.valid())
        if not first.valid() and gave_up is None:
            gave_up = clock.steady()
        if second.valid():
            taken = clock.steady()
            break
    assert gave_up is not None
    assert taken is not None
    assert gave_up + LASTS / 10 < taken < 5.0 + LASTS + 1.0
    with pytest.raises(Superseded, match=r"took over \(epoch 1\d+, ours is 1005\)"):
        await first.renew()
    assert not first.valid()


async def test_a_renewed_lease_is_not_taken(shared: Leases, clock: HandClock) -> None:
    first, second = shared("a"), shared("b")
    await first.acquire()
    for _ in range(30):
        await clock.pass_by(LASTS / 2)
        assert first.valid()
        await first.renew()
        with pytest.raises(Denied):
            await second.acquire()


async def test_a_standby_that_was_frozen_after_its_look_takes_nothing(
    shared: Leases, clock: HandClock
) -> None:
    """It last saw the lease long ago: what it sees now is news, and it waits from now on."""
    first, second = shared("a"), shared("b")
    await first.acquire()
    with pytest.raises(Denied):
        await second.acquire()
    await first.renew()
    await clock.pass_by(100.0)
    with pytest.raises(Denied):
        await second.acquire()
    row = await second._lane.run(_look)
    await first.renew()  # and between its look and its grab
    with pytest.raises(Denied, match="took the lease first"):
        await second._lane.run(lambda db: second._take(db, row, 1.0))
    await first.renew()


async def test_a_standby_waits_from_its_own_first_look(shared: Leases, clock: HandClock) -> None:
    """Whatever any time of day says of the holder's last renewal."""
    first = shared("a")
    await first.acquire()
    await clock.pass_by(1000.0)
    late = shared("b")
    with pytest.raises(Denied):
        await late.acquire()
    await clock.pass_by(LASTS + 0.1)
    await late.acquire()
    assert late.valid()


async def test_who_comes_back_to_the_same_seat_waits_for_nobody(shared: Leases) -> None:
    """The lock of the state directory says that the holder from that seat is dead."""
    before = await shared("a").acquire()
    again = shared("a")
    assert (await again.acquire()).epoch == before.epoch + 1


async def test_a_lease_that_ran_out_is_held_again_unless_another_took_it(
    shared: Leases, clock: HandClock
) -> None:
    first = shared("a")
    await first.acquire()
    await clock.pass_by(60.0)
    assert not first.valid()
    await first.renew()
    assert first.valid()


# -- beyond the lease ----------------------------------------------------------------------------------


class Keeping:
    """A lease that is renewed on a clock of the test's, over a database that can be away."""

    def __init__(self, lease: SharedLease, clock: HandClock) -> None:
        self.lease, self.clock, self.away = lease, clock, False
        self._real = lease._lane.run
        lease._lane.run = self._run  # type: ignore[method-assign]

    async def _run(self, *args: Any, **more: Any) -> Any:
        if self.away:
            raise StoreUnavailable("nothing answers")
        return await self._real(*args, **more)

    async def tries(self, seconds: float) -> None:
        """Time goes by, and the lease is asked for twice a second as `keep` does."""
        for _ in range(round(seconds * 2)):
            await self.clock.pass_by(0.5)
            try:
                await self.lease.renew()
            except StoreUnavailable:
                if not self.away:
                    raise


@pytest.fixture
async def kept(shared: Leases, clock: HandClock) -> Keeping:
    lease = shared("a")
    await lease.acquire()
    return Keeping(lease, clock)


async def test_a_lease_that_runs_out_for_want_of_an_answer_says_since_when(kept: Keeping) -> None:
    lease = kept.lease
    await kept.tries(20.0)
    assert lease.unanswered() is None
    kept.away = True
    await kept.tries(0.8 * LASTS - 0.5)
    assert (lease.valid(), lease.unanswered()) == (True, None)
    await kept.tries(1.0)
    assert not lease.valid()
    assert lease.unanswered() == pytest.approx(0.8 * LASTS + 0.5)
    await kept.tries(600.0)
    assert lease.unanswered() == pytest.approx(0.8 * LASTS + 600.5)
    kept.away = False
    await kept.tries(0.5)
    assert (lease.valid(), lease.unanswered()) == (True, None)


async def test_who_wakes_up_has_to_ask_anew(kept: Keeping, clock: HandClock) -> None:
    """While it was frozen another may have taken the lease; what it knew before counts no more."""
    kept.away = True
    await kept.tries(30.0)
    assert kept.lease.unanswered() is not None
    await clock.pass_by(5.0)
    assert kept.lease.unanswered() is not None  # so long a try may take
    await clock.pass_by(55.0)
    assert kept.lease.unanswered() is None
    await kept.tries(5.0)
    assert kept.lease.unanswered() is None
    await kept.tries(0.5)  # the last is five seconds after the first
    assert kept.lease.unanswered() is not None


async def test_who_was_frozen_under_the_lease_has_to_ask_as_well(kept: Keeping, clock: HandClock) -> None:
    await clock.pass_by(60.0)
    assert kept.lease.unanswered() is None
    kept.away = True
    await kept.tries(5.0)
    assert kept.lease.unanswered() is None
    await kept.tries(0.5)  # the last is five seconds after the first
    assert kept.lease.unanswered() is not None


async def test_a_lease_that_another_took_or_that_was_given_up_is_answered(
    kept: Keeping, shared: Leases, clock: HandClock
) -> None:
    kept.away = True
    await kept.tries(30.0)
    assert kept.lease.unanswered() is not None
    other = shared("b")
    with pytest.raises(Denied):
        await other.acquire()
    await kept.tries(LASTS + 0.5)
    await other.acquire()
    assert kept.lease.unanswered() is not None  # it cannot know
    kept.away = False
    with pytest.raises(Superseded):
        await kept.tries(0.5)
    assert kept.lease.unanswered() is None
    assert other.unanswered() is None
    await other.release()
    assert other.unanswered() is None


async def test_who_never_held_it_is_no_leader_of_old(shared: Leases) -> None:
    first, second = shared("a"), shared("b")
    await first.acquire()
    assert second.unanswered() is None


async def test_the_lease_counts_from_before_it_was_asked_for(shared: Leases, clock: HandClock) -> None:
    """A holder that is frozen while its renewal is under way knows when it wakes up that it may not act."""
    first = shared("a")
    await first.acquire()
    real = first._lane.run

    async def frozen(*args: Any, **more: Any) -> Any:
        found = await real(*args, **more)
        await clock.pass_by(60.0)
        return found

    first._lane.run = frozen  # type: ignore[method-assign]
    await first.renew()
    assert not first.valid()


async def test_another_pool_is_refused(shared: Leases) -> None:
    await shared("a").acquire()
    with pytest.raises(StoreUnavailable, match="is the journal of pool p; give pool q a database of its own"):
        await shared("b", pool="q").acquire()


async def test_a_database_is_whose_pools_were_in_it(shared: Leases, clock: HandClock) -> None:
    """Pools come and go; who shares none with those before it writes into another's journal."""
    for seat, pools in (("a", "p"), ("a", "p,q"), ("a", "q,r"), ("a", ""), ("a", "s")):
        lease = shared(seat, pool=pools)
        await lease.acquire()
        await lease.release()
    with pytest.raises(StoreUnavailable, match="is the journal of pool s; give pools t, u a database"):
        await shared("b", pool="u,t").acquire()


async def test_a_database_that_is_away_is_asked_twice_a_second(shared: Leases) -> None:
    """A lease of two minutes is renewed five times in them, and found again at once."""
    waits: list[float] = []

    class Noted(HandClock):
        async def sleep(self, seconds: float) -> None:
            waits.append(seconds)
            await self.pass_by(seconds)
            if len(waits) == 6:
                raise asyncio.CancelledError

    lease = shared("a", clock=Noted())
    await lease.acquire()
    kept = Keeping(lease, lease._clock)  # type: ignore[arg-type]
    renew = lease.renew

    async def away_for_a_while() -> None:
        kept.away = 2 <= len(waits) < 4
        await renew()

    lease.renew = away_for_a_while  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await lease.keep()
    assert waits == [LASTS / 5, LASTS / 5, 0.5, 0.5, LASTS / 5, LASTS / 5]


async def test_who_could_not_write_the_lease_sends_others_away_once(shared: Leases) -> None:
    """What holds the row up may be a connection of a daemon that is frozen."""
    lease = shared("a")
    evicted: list[str] = []
    lease._backend.evict = lambda _db: evicted.append("now")  # type: ignore[method-assign]
    real, answers = lease._lane.run, iter((True, False, True, True))

    async def run(work: Callable[[Any], Any]) -> Any:
        if next(answers, True):
            return await real(work)
        raise StoreUnavailable("held up")

    lease._lane.run = run  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreUnavailable, match="held up"):
        await lease.acquire()
    assert (lease.valid(), lease.leader, evicted) == (False, "", [])
    await lease.acquire()
    assert (lease.valid(), evicted) == (True, ["now"])
    await lease.acquire()
    assert evicted == ["now"]


async def test_who_holds_nothing_asks_nobody_to_take_it_back(shared: Leases, clock: HandClock) -> None:
    never, lost, other = shared("a"), shared("b"), shared("c")
    await lost.acquire()
    with pytest.raises(Denied):
        await other.acquire()
    await clock.pass_by(LASTS + 0.1)
    await other.acquire()
    with pytest.raises(Superseded, match=rf"pid {os.getpid()} on \S+ took over"):
        await lost.renew()
    shared.journal.sql("UPDATE lease SET who=''")
    with pytest.raises(Superseded, match="another daemon took over"):
        await lost.renew()

    async def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the database was asked")

    for lease in (never, lost):
        lease._lane.run = asked  # type: ignore[method-assign]
        await lease.release()
    assert other.valid()


async def test_keeping_renews_and_ends_once_another_has_it(shared: Leases, clock: HandClock) -> None:
    first, second = shared("a"), shared("b")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    for _ in range(5):
        held_until = first._until
        while first._until == held_until:
            await clock.pass_by(0.5)
            await asyncio.sleep(0.001)
    shared.journal.sql("UPDATE lease SET seat=''")
    await second.acquire()
    while not keeping.done():
        await clock.pass_by(0.5)
        await asyncio.sleep(0.001)
    with pytest.raises(Superseded):
        await keeping
