"""Limits of keys over several processes that share one file: together they keep to them, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway.accounts import limit_book, limit_file, shared_file
from orchestrator.gateway.accounts.limit_book import LimitBook, LimitReached, Place
from orchestrator.gateway.accounts.limit_file import (
    LAPSES,
    Add,  # noqa: F401 - for scripts of other processes
    Ask,
    Full,
    KeyUse,
    LimitFile,
    Settle,
    Unusable,
    read_use,
)
from policies.client_limits import Booking, Limit
from policies.keys import KeyLimits
from tests.support.hand_clock import HandClock

NOW = 5000.0
LONG = 90.0
TEN = KeyLimits(requests_per_minute=10)
TOKENS = KeyLimits(tokens_per_minute=1000)
TWO = KeyLimits(in_flight=2)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no test fail: what waits, waits."""
    monkeypatch.setattr(limit_book, "_PATIENCE", LONG)
    monkeypatch.setattr(shared_file, "BUSY_WAIT", LONG)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


def ask(
    file: LimitFile, limits: KeyLimits, now: float = NOW, *, tokens: int = 0, own: int = 0
) -> Booking | Full:
    """One request of the key `a`; `own`: what its process has in flight."""
    [found] = file.apply([Ask("a", limits, tokens)], {"a": own}, now)
    assert found is not None
    return found


def booked(found: Booking | Full) -> Booking:
    assert isinstance(found, Booking)
    return found


def limit_of(found: Booking | Full) -> Limit:
    assert isinstance(found, Full)
    return found.limit


class TestFile:
    def test_processes_see_what_each_other_sent(self, path: Path) -> None:
        one, two = LimitFile(path), LimitFile(path)
        for n in range(10):
            booked(ask((one, two)[n % 2], TEN))
        assert limit_of(ask(one, TEN)) is Limit.REQUESTS
        assert limit_of(ask(two, TEN, NOW + 60.9)) is Limit.REQUESTS
        booked(ask(two, TEN, NOW + 61))

    def test_of_many_in_one_transaction_as_many_pass_as_there_is_room_for(self, path: Path) -> None:
        file = LimitFile(path)
        found = file.apply([Ask("a", TEN, 0)] * 25 + [Ask("b", TEN, 0)] * 3, {}, NOW)
        assert [isinstance(each, Booking) for each in found] == [True] * 10 + [False] * 15 + [True] * 3

    def test_requests_in_flight_are_counted_over_all_processes(self, path: Path) -> None:
        one, two = LimitFile(path), LimitFile(path)
        first = booked(ask(one, TWO))
        booked(ask(two, TWO))
        assert limit_of(ask(one, TWO, own=1)) is Limit.IN_FLIGHT
        assert limit_of(ask(two, TWO, own=1)) is Limit.IN_FLIGHT
        one.apply([Settle("a", TWO, first, 5)], {"a": 0}, NOW)
        booked(ask(two, TWO, own=1))

    def test_those_of_a_dead_process_lapse_and_those_of_a_living_one_do_not(self, path: Path) -> None:
        dead, living, other = LimitFile(path), LimitFile(path), LimitFile(path)
        booked(ask(dead, TWO))
        booked(ask(living, TWO))
        later = NOW + LAPSES + 1
        living.apply([], {"a": 1}, later)
        assert limit_of(ask(other, KeyLimits(in_flight=1), later)) is Limit.IN_FLIGHT
        booked(ask(other, TWO, later))
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM open").fetchone()[0] == 2

    def test_a_process_that_was_frozen_counts_again_when_it_moves(self, path: Path) -> None:
        frozen, other = LimitFile(path), LimitFile(path)
        booked(ask(frozen, TWO))
        booked(ask(other, TWO, NOW + 20))
        frozen.apply([], {"a": 1}, NOW + 21)
        assert limit_of(ask(other, TWO, NOW + 21, own=1)) is Limit.IN_FLIGHT

    def test_a_process_that_leaves_has_nothing_in_flight(self, path: Path) -> None:
        one, two = LimitFile(path), LimitFile(path)
        file = {"a": 2}
        one.apply([], file, NOW)
        assert limit_of(ask(two, TWO)) is Limit.IN_FLIGHT
        one.leave()
        booked(ask(two, TWO))

    def test_tokens_are_put_right_in_the_sight_of_all(self, path: Path) -> None:
        one, two = LimitFile(path), LimitFile(path)
        long = booked(ask(one, TOKENS, tokens=900))
        assert limit_of(ask(two, TOKENS, tokens=200)) is Limit.TOKENS
        one.apply([Settle("a", TOKENS, long, 100)], {"a": 0}, NOW + 3)
        short = booked(ask(two, TOKENS, NOW + 3, tokens=200))
        two.apply([Settle("a", TOKENS, short, 2900)], {"a": 0}, NOW + 4)  # three minutes' worth
        for now in (NOW + 30, NOW + 90, NOW + 150):
            assert limit_of(ask(one, TOKENS, now, tokens=200)) is Limit.TOKENS
        booked(ask(one, TOKENS, NOW + 250, tokens=200))

    def test_a_place_that_is_given_back_is_free(self, path: Path) -> None:
        file = LimitFile(path)
        last = [booked(ask(file, TEN)) for _ in range(10)][-1]
        file.apply([Settle("a", TEN, last, None)], {"a": 0}, NOW + 1)
        booked(ask(file, TEN, NOW + 1))
        assert limit_of(ask(file, TEN, NOW + 1)) is Limit.REQUESTS

    def test_a_start_of_the_host_begins_anew(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its steady clock does, so seconds before it are not those after it."""
        for _ in range(10):
            booked(ask(LimitFile(path), TEN))
        monkeypatch.setattr(limit_file, "_boot", lambda: "another")
        assert read_use(path, NOW) == {}
        booked(ask(LimitFile(path), TEN))
        assert read_use(path, NOW) == {"a": KeyUse(requests=1, in_flight=1)}

    def test_what_no_minute_touches_is_cleared(self, path: Path) -> None:
        file = LimitFile(path)
        booked(ask(file, TEN))
        booked(ask(file, TEN, NOW + 300))
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT second FROM windows").fetchall() == [(NOW + 300,)]

    def test_a_file_that_was_taken_away_is_made_anew(self, path: Path) -> None:
        file = LimitFile(path)
        booked(ask(file, TEN))
        path.rename(path.with_suffix(".old"))
        booked(ask(file, TEN, NOW + 1))
        assert read_use(path, NOW + 1) == {"a": KeyUse(requests=1, in_flight=1)}

    def test_readers_see_the_minute_and_make_no_file(self, path: Path) -> None:
        assert read_use(path, NOW) == {}
        assert not path.exists()
        file = LimitFile(path)
        taken = booked(ask(file, KeyLimits(tokens_per_minute=50), tokens=40))
        assert read_use(path, NOW) == {"a": KeyUse(requests=1, tokens=40, in_flight=1)}
        file.apply([Settle("a", KeyLimits(tokens_per_minute=50), taken, 45)], {"a": 0}, NOW + 1)
        assert read_use(path, NOW + 60) == {"a": KeyUse(requests=1, tokens=45)}
        assert read_use(path, NOW + 200) == {}

    def test_a_damaged_file_is_refused_and_left_as_it_is(self, path: Path) -> None:
        path.write_bytes(b"no database at all, but longer than a header" * 100)
        before = path.read_bytes()
        with pytest.raises(Unusable, match="not a database"):
            ask(LimitFile(path), TEN)
        with pytest.raises(Unusable):
            read_use(path, NOW)
        assert path.read_bytes() == before


def started(script: str, path: Path) -> subprocess.Popen[str]:
    """Another process, which runs a script with the names of this module and `file`."""
    head = f"""
        import os
        from pathlib import Path
        from {__name__} import *
        shared_file.BUSY_WAIT = LONG
        file = LimitFile(Path({str(path)!r}))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        stdout=subprocess.PIPE,
        text=True,
    )


class TestProcesses:
    def test_together_they_send_exactly_the_limit(self, path: Path) -> None:
        """Each asks as fast as it can, for a second of the clock that all of them are told."""
        script = """
            limits = KeyLimits(requests_per_minute=800)
            passed = 0
            for turn in range(60):
                found = file.apply([Ask("a", limits, 0)] * 5, {}, NOW)
                passed += sum(isinstance(each, Booking) for each in found)
            print(passed)
        """
        workers = [started(script, path) for _ in range(3)]
        passed = [int(worker.communicate(timeout=100)[0]) for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert sum(passed) == 800
        assert min(passed) >= 200  # as the other two ask for 600 at most

    def test_what_a_killed_process_had_in_flight_lapses(self, path: Path) -> None:
        script = 'file.apply([Ask("a", TWO, 0)] * 2, {}, NOW); os.kill(os.getpid(), 9)'
        with started(script, path) as other:
            assert other.wait(timeout=100) == -signal.SIGKILL
        file = LimitFile(path)
        assert limit_of(ask(file, TWO, NOW + LAPSES)) is Limit.IN_FLIGHT
        booked(ask(file, TWO, NOW + LAPSES + 0.1))


@asynccontextmanager
async def opened(path: Path | None, clock: HandClock | None = None) -> AsyncIterator[LimitBook]:
    book = LimitBook(path, clock or _Still(NOW))
    try:
        yield book
    finally:
        await book.close()


class _Still(HandClock):
    """A clock that stands while nobody turns it: whoever sleeps does so until the end."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


class _Beats(HandClock):
    """A clock whose sleepers are woken by hand."""

    def __init__(self, at: float) -> None:
        super().__init__(at)
        self.turn = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        await self.turn.wait()
        self.turn.clear()


async def passes(book: LimitBook, limits: KeyLimits, count: int, tokens: int = 0) -> list[Place]:
    """The places that of so many requests at once were had."""
    found = await asyncio.gather(
        *(book.ask("a", limits, tokens) for _ in range(count)), return_exceptions=True
    )
    assert all(isinstance(each, (Place, LimitReached)) for each in found), found
    return [each for each in found if isinstance(each, Place)]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what threads and tasks bring about."""
    while not holds():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.001)


def put_away(path: Path) -> None:
    """Have something in the place of a file that cannot be written."""
    path.rename(path.with_suffix(".old"))
    path.mkdir()


def put_back(path: Path) -> None:
    """Have the file again."""
    path.rmdir()
    path.with_suffix(".old").rename(path)


class TestBook:
    async def test_of_a_hundred_at_once_over_two_books_as_many_pass_as_the_limit_allows(
        self, path: Path
    ) -> None:
        async with opened(path) as one, opened(path) as two:
            passed = await asyncio.gather(passes(one, TEN, 50), passes(two, TEN, 50))
            assert sum(map(len, passed)) == 10

    async def test_places_in_flight_go_from_one_to_the_other(self, path: Path) -> None:
        async with opened(path) as one, opened(path) as two:
            [first, _] = await passes(one, TWO, 5)
            assert await passes(two, TWO, 5) == []
            one.done(first, 3)
            await one.settled()
            [third] = await passes(two, TWO, 5)
            two.done(third, 3)
            await two.settled()
            assert len(await passes(one, TWO, 5)) == 1

    async def test_a_process_that_ends_in_good_order_leaves_nothing(self, path: Path) -> None:
        async with opened(path) as old:
            for place in await passes(old, TWO, 2):
                old.done(place, 1)
        assert read_use(path, NOW) == {"a": KeyUse(requests=2)}

    async def test_the_refused_are_told_which_limit_and_when(self, path: Path) -> None:
        async with opened(path) as book:
            await passes(book, TEN, 10)
            for wait in (61, 60):  # the second is told to come no later than clients wait
                with pytest.raises(LimitReached, match="10 requests a minute and made them") as reached:
                    await book.ask("a", TEN, 0)
                assert 0 < reached.value.refused.retry_after <= wait

    async def test_a_place_that_came_as_its_asker_left_is_given_back(self, path: Path) -> None:
        async with opened(path) as book:
            asking = [asyncio.ensure_future(book.ask("a", TWO, 0)) for _ in range(2)]
            await asyncio.sleep(0)
            for each in asking:
                each.cancel()
            await asyncio.wait(asking)
            await book.settled()
            assert book.in_flight("a") == 0
            assert len(await passes(book, TWO, 5)) == 2
            assert read_use(path, NOW)["a"].requests == 2

    async def test_a_living_process_says_so(self, path: Path) -> None:
        clock = _Beats(NOW)
        async with opened(path, clock) as book, opened(path) as other:
            await passes(book, TWO, 2)
            clock.at += LAPSES + 1
            other._clock.at = clock.at  # type: ignore[attr-defined]
            assert read_use(path, clock.at)["a"].in_flight == 0
            clock.turn.set()
            await until(lambda: read_use(path, clock.at)["a"].in_flight == 2)
            assert await passes(other, TWO, 1) == []

    async def test_streams_longer_than_thought_count_while_they_run(self, path: Path) -> None:
        """A burst after short answers is let in for little."""
        clock, come = _Beats(NOW), 0

        def is_used(tokens: int) -> bool:
            return read_use(path, NOW)["a"].tokens == tokens

        async with opened(path, clock) as book, opened(path) as other:
            running = [await book.ask("a", TOKENS, 10, lambda: come) for _ in range(20)]
            assert len(await passes(other, TOKENS, 1, tokens=10)) == 1
            for length, counted in ((30, 610), (60, 1000)):
                come = length
                clock.turn.set()
                await until(partial(is_used, counted))
                await book.settled()
            assert await passes(other, TOKENS, 1, tokens=10) == []
            assert await passes(book, TOKENS, 1, tokens=10) == []
            for place in running:
                book.done(place, 70)
            await book.settled()
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT sum(tokens) FROM windows").fetchone()[0] == 20 * 70 + 10

    async def test_they_do_so_where_a_process_goes_by_itself(self) -> None:
        come = 0
        async with opened(None) as book:
            place = await book.ask("a", TOKENS, 10, lambda: come)
            come = 990
            book._count_streams()
            assert len(await passes(book, TOKENS, 2, tokens=10)) == 1
            book.done(place, 100)
            assert len(await passes(book, TOKENS, 1, tokens=880)) == 1

    @pytest.mark.parametrize("seed", range(4))
    async def test_whatever_becomes_of_requests_every_place_comes_free_and_every_request_counts_once(
        self, path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are let in or not, end, are given back, and are left by their clients at any instant; now and
        then the file cannot be written."""
        draw, counted = random.Random(seed), 0
        limits = KeyLimits(requests_per_minute=150, in_flight=12)

        async def client(book: LimitBook) -> None:
            nonlocal counted
            for _ in range(12):
                asking = asyncio.ensure_future(book.ask("a", limits, 0))
                if draw.random() < 0.3:
                    for _ in range(draw.randrange(4)):
                        await asyncio.sleep(draw.choice((0, 0.001)))
                    asking.cancel()
                try:
                    place = await asking
                except (LimitReached, asyncio.CancelledError):
                    continue
                await asyncio.sleep(draw.choice((0, 0.001)))
                given_back = draw.random() < 0.3
                counted += not given_back
                book.done(place, None if given_back else 7)

        real, failing = LimitFile.apply, threading.Event()

        def fails(file: LimitFile, *words: Any) -> Any:
            if failing.is_set():
                raise Unusable("planted")
            return real(file, *words)

        async def trouble() -> None:
            for _ in range(3):
                await asyncio.sleep(0.02)
                failing.set()
                await asyncio.sleep(0.01)
                failing.clear()
                for book in (one, two):
                    book._begin()

        monkeypatch.setattr(LimitFile, "apply", fails)
        async with opened(path) as one, opened(path) as two:
            await passes(one, KeyLimits(tokens_per_minute=1), 1)  # makes the file
            own = one.in_flight("a")
            await asyncio.gather(trouble(), *(client(book) for book in (one, two) for _ in range(8)))
            for book in (one, two):
                while book.trouble or book._owed:
                    book._begin()
                    await book.settled()
                await book.settled()
            assert (one.in_flight("a"), two.in_flight("a")) == (own, 0)
            one._begin()
            await one.settled()
            assert read_use(path, NOW)["a"].requests == counted + 1
            assert read_use(path, NOW)["a"].in_flight == 1


class TestTrouble:
    async def test_without_a_file_a_process_goes_by_itself(self) -> None:
        async with opened(None) as book:
            places = await passes(book, TEN, 15)
            assert len(places) == 10
            book.done(places[0], None)
            assert len(await passes(book, TEN, 15)) == 1

    async def test_a_file_that_cannot_be_written_stops_nobody_and_is_told(self, tmp_path: Path) -> None:
        clock = _Beats(NOW)
        path = tmp_path / "nowhere" / "usage.db"
        async with opened(path, clock) as book:
            assert len(await passes(book, TEN, 8)) == 8
            assert "nowhere" in book.trouble
            assert len(await passes(book, TEN, 8)) == 2
            path.parent.mkdir()
            clock.turn.set()
            await until(lambda: not book.trouble)
            assert read_use(path, NOW)["a"] == KeyUse(requests=10, in_flight=10)
            async with opened(path) as other:
                assert await passes(other, TEN, 3) == []

    async def test_a_request_that_ends_while_the_file_cannot_be_written_is_booked_later(
        self, path: Path
    ) -> None:
        clock = _Beats(NOW)
        async with opened(path, clock) as book:
            [place] = await passes(book, TOKENS, 1, tokens=600)
            put_away(path)
            assert await passes(book, TOKENS, 1, tokens=600) == []
            assert book.trouble
            book.done(place, 300)
            put_back(path)
            clock.turn.set()
            await until(lambda: not book.trouble)
            assert read_use(path, NOW)["a"] == KeyUse(requests=1, tokens=300)

    async def test_a_disk_that_hangs_holds_up_one_wait_and_what_it_let_in_late_is_given_back(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go_on, real = threading.Event(), LimitFile.apply

        def hangs(file: LimitFile, changes: list[Ask], in_flight: dict[str, int], now: float) -> object:
            assert go_on.wait(LONG)
            return real(file, changes, in_flight, now)

        async with opened(path) as book:
            monkeypatch.setattr(LimitFile, "apply", hangs)
            monkeypatch.setattr(limit_book, "_PATIENCE", 0.01)
            assert len(await passes(book, TEN, 6)) == 6
            assert "does not answer" in book.trouble
            monkeypatch.setattr(limit_book, "_PATIENCE", LONG)
            assert len(await passes(book, TEN, 6)) == 4
            go_on.set()
            await book.settled()
            assert book.trouble == ""
            assert book.in_flight("a") == 10
            book._begin()  # as the next sign of life does
            await book.settled()
            assert read_use(path, NOW)["a"] == KeyUse(requests=10, in_flight=10)

    def test_a_full_disk_is_told_and_changes_nothing(self, path: Path) -> None:
        """The limit on the size of a process's files is as a full disk to it."""
        script = """
            import resource
            file.apply([Ask("a", TEN, 0)], {}, NOW)
            db = Path(str(file.path) + "-wal")
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(file.path.stat().st_size, db.stat().st_size), -1))
            refused = 0
            for n in range(40):
                try:
                    file.apply([Add("b" * 500 + str(n), Booking(second=5000, requests=1))], {}, NOW)
                except Unusable:
                    refused += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            print(refused, len(read_use(file.path, NOW)))
        """
        with started(script, path) as other:
            refused, keys = map(int, other.communicate(timeout=100)[0].split())
        assert refused > 0
        assert keys == 41 - refused
