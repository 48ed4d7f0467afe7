"""The spend file: caps hold for all who write it, and survive kills, full disks and damage."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway import spend_book, spend_file
from orchestrator.gateway.accounts import shared_file
from orchestrator.gateway.spend_book import SpendBook
from orchestrator.gateway.spend_file import (
    VERSION,
    CapReached,
    Claim,
    Settled,
    SpendFile,
    Ticket,
    Unusable,
    read_totals,
)
from policies.spend import Usage, day_of, usd
from tests.support.hand_clock import HandClock

NOON = 1_796_040_000.0  # 2026-11-30 12:00 UTC
DAY = 86_400.0
LONG = 90.0
USAGE = Usage(fresh=7, cached=2, cache_write=1, output=5, cache_write_1h=3)


def claim(
    amount: int | None = 10, *, cap: int | None = None, route_cap: int | None = None, **words: str
) -> Claim:
    names = {"provider": "api", "route": "assistant", "model": "big", **words}
    return Claim(amount=amount, provider_cap=cap, route_cap=route_cap, until=NOON + 60, **names)


def keyed(amount: int, *, cap: int | None = None, key: str = "team-a", **words: str) -> Claim:
    names = {"provider": "api", "route": "assistant", "model": "big", **words}
    return Claim(amount=amount, key=key, key_cap=cap, until=NOON + 60, **names)


OLD_SUMS = ("amount", "requests", "estimated", "unpriced", "fresh", "cached", "written", "output")
OLD_TABLES = f"""
CREATE TABLE IF NOT EXISTS file (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS held (
    id INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL,
    model TEXT NOT NULL, amount INTEGER NOT NULL, until REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS held_day ON held (day);
CREATE TABLE IF NOT EXISTS spent (
    day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL" for name in OLD_SUMS)},
    PRIMARY KEY (day, provider, route, model)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
OLD_HOLD = "INSERT INTO held (day, provider, route, model, amount, until) VALUES (?, ?, ?, ?, ?, ?)"
OLD_BOOK = (
    f"INSERT INTO spent (day, provider, route, model, {', '.join(OLD_SUMS)}) "  # noqa: S608 - as it was
    f"VALUES (?, ?, ?, ?{', ?' * len(OLD_SUMS)}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = min({name} + excluded.{name}, {2**61})" for name in OLD_SUMS)
)


@contextlib.contextmanager
def old_gateway(path: Path) -> Iterator[sqlite3.Connection]:
    """The file as a gateway has it open that knows nothing of keys. It refuses later versions."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=LONG)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        assert version <= 1
        if version < 1:
            for statement in OLD_TABLES.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO file VALUES ('made-by-an-old-one')")
        yield db


def hold(file: SpendFile, wanted: Claim, now: float = NOON) -> Ticket:
    [found] = file.apply([wanted], now)
    if isinstance(found, CapReached):
        raise found
    assert found is not None
    return found


def settle(file: SpendFile, ticket: Ticket, amount: int | None = 4, now: float = NOON) -> None:
    assert file.apply([Settled(ticket=ticket, amount=amount, usage=USAGE)], now) == [None]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no test fail: what waits, waits."""
    monkeypatch.setattr(spend_book, "_PATIENCE", LONG)
    monkeypatch.setattr(shared_file, "BUSY_WAIT", LONG)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spend.db"


@pytest.fixture
def file(path: Path) -> SpendFile:
    return SpendFile(path)


class TestCaps:
    def test_what_is_held_and_what_is_spent_count(self, file: SpendFile) -> None:
        first = hold(file, claim(10, cap=25))
        hold(file, claim(10, cap=25))
        with pytest.raises(CapReached, match="provider api: of"):
            hold(file, claim(6, cap=25))
        settle(file, first, 4)
        hold(file, claim(11, cap=25))  # to the last picodollar
        with pytest.raises(CapReached):
            hold(file, claim(1, cap=25))

    def test_a_route_has_a_cap_over_all_its_providers(self, file: SpendFile) -> None:
        hold(file, claim(10, route_cap=15, provider="a"))
        with pytest.raises(CapReached, match="route assistant: of"):
            hold(file, claim(10, route_cap=15, provider="b"))
        hold(file, claim(10, route_cap=15, route="other"))

    def test_a_provider_has_a_cap_over_all_routes_and_models(self, file: SpendFile) -> None:
        hold(file, claim(10, cap=15, route="a", model="x"))
        with pytest.raises(CapReached):
            hold(file, claim(10, cap=15, route="b", model="y"))

    def test_what_was_never_sent_is_let_go(self, file: SpendFile) -> None:
        ticket = hold(file, claim(10, cap=10))
        assert file.apply([Settled(ticket=ticket)], NOON) == [None]
        assert file.totals(NOON).lines == ()
        hold(file, claim(10, cap=10))

    def test_a_request_that_cost_more_than_was_held_is_booked_in_full(self, file: SpendFile) -> None:
        settle(file, hold(file, claim(10, cap=15)), 40)
        assert file.totals(NOON).amount() == 40
        with pytest.raises(CapReached):
            hold(file, claim(0, cap=15))

    def test_the_day_is_utc_and_that_of_the_sending(self, file: SpendFile) -> None:
        midnight = NOON + DAY / 2
        ticket = hold(file, claim(10, cap=10), midnight - 1)
        hold(file, claim(10, cap=10), midnight)
        settle(file, ticket, 10, midnight + 5)
        assert file.totals(midnight - 1).amount() == 10
        assert file.totals(midnight).amount() == 0

    def test_an_unknown_amount_fits_under_no_cap(self) -> None:
        with pytest.raises(ValueError, match="unknown amount"):
            claim(None, cap=10)
        with pytest.raises(ValueError, match="unknown amount"):
            claim(None, route_cap=10)

    def test_amounts_beyond_the_column_do_not_break_the_sums(self, file: SpendFile) -> None:
        for _ in range(9):
            hold(file, claim(10**30))
            settle(file, hold(file, claim(1)), 10**30)
        assert file.totals(NOON).amount() == spend_file._MOST
        with pytest.raises(CapReached):
            hold(file, claim(1, cap=usd("1000000")))


class TestSums:
    def test_lines_tell_tokens_requests_and_what_is_not_known(self, file: SpendFile) -> None:
        settle(file, hold(file, claim()), 4)
        settle(file, hold(file, claim()), 5)
        settle(file, hold(file, claim(None, provider="free")), None)
        file.apply([Settled(ticket=hold(file, claim()), amount=10, estimated=True)], NOON)
        hold(file, claim(3))
        api, free = file.totals(NOON).lines
        assert (api.amount, api.requests, api.estimated, api.unpriced) == (19, 3, 1, 0)
        assert (api.fresh, api.cached, api.written, api.output) == (14, 4, 8, 10)
        assert (api.held, api.unsettled) == (3, 0)
        assert (free.amount, free.requests, free.unpriced) == (0, 1, 1)

    def test_a_settlement_that_is_made_again_counts_once(self, file: SpendFile) -> None:
        ticket = hold(file, claim())
        settle(file, ticket, 4)
        settle(file, ticket, 4)
        assert file.totals(NOON).amount() == 4

    def test_a_ticket_of_a_file_that_was_replaced_is_booked_all_the_same(
        self, file: SpendFile, path: Path
    ) -> None:
        ticket = hold(file, claim())
        path.rename(path.with_suffix(".old"))
        other = hold(file, claim())
        assert other.file != ticket.file
        settle(file, ticket, 4)
        line = file.totals(NOON).lines[0]
        assert (line.amount, line.held) == (4, 10)

    def test_old_days_are_forgotten(self, file: SpendFile) -> None:
        settle(file, hold(file, claim()), 4)
        hold(file, claim())
        later = NOON + (spend_file.KEPT_DAYS + 1) * DAY
        hold(file, claim(), later - 2 * DAY)
        assert file.totals(NOON).amount() == 4
        hold(file, claim(), later)
        assert file.totals(NOON).lines == ()

    def test_a_clock_that_is_years_ahead_for_a_while_empties_nothing(self, file: SpendFile) -> None:
        for day in range(10):
            settle(file, hold(file, claim(), NOON + day * DAY), 4, NOON + day * DAY)
        ahead = NOON + 4000 * DAY
        hold(file, claim(), ahead)
        spent = [file.totals(NOON + day * DAY).amount() for day in range(10)]
        assert spent == [0, 0, *[4] * 8]
        file.close()
        hold(file, claim(), NOON + 9 * DAY)
        assert file.totals(NOON + 9 * DAY).held() == 10

    def test_readers_need_no_writer_and_make_no_file(self, file: SpendFile, path: Path) -> None:
        assert [found.lines for found in read_totals(path, NOON, days=2)] == [(), ()]
        assert not path.exists()
        path.touch()
        assert read_totals(path, NOON)[0].lines == ()  # whoever made it writes its tables next
        settle(file, hold(file, claim(), NOON - DAY), 4, NOON - DAY)
        settle(file, hold(file, claim()), 5)
        assert [found.amount() for found in read_totals(path, NOON, days=2)] == [5, 4]
        file.close()
        assert [found.amount() for found in read_totals(path, NOON, days=2)] == [5, 4]

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
    @pytest.mark.parametrize("writing", [True, False])
    def test_the_daemon_reads_where_it_may_write_nothing(self, writing: bool) -> None:
        """It runs as another user, and reads by its group, whether the gateway runs or not."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "spend.db"
            file = SpendFile(path)
            settle(file, hold(file, claim()), 5)
            if not writing:
                file.close()
            os.chmod(directory, 0o755)  # noqa: S103 - so that the other user can look
            for each in Path(directory).iterdir():
                each.chmod(0o644)
            pid = os.fork()
            if pid == 0:
                os.setuid(65534)
                try:
                    code = read_totals(path, NOON)[0].amount()
                except BaseException:
                    code = 99
                os._exit(code)
            _, status = os.waitpid(pid, 0)
            file.close()
        assert os.waitstatus_to_exitcode(status) == 5


class TestKeys:
    def test_a_key_has_a_cap_over_all_providers_and_routes(self, file: SpendFile) -> None:
        hold(file, keyed(10, cap=25))
        settle(file, hold(file, keyed(10, cap=25, provider="other", route="other")), 12)
        with pytest.raises(CapReached, match=r"of .* a day .* is spent and .* held") as reached:
            hold(file, keyed(4, cap=25))
        assert reached.value.of_key
        hold(file, keyed(3, cap=25))
        hold(file, keyed(25, cap=25, key="team-b"))
        hold(file, claim(100))

    def test_the_cap_of_a_provider_counts_the_requests_of_all_keys_and_of_none(self, file: SpendFile) -> None:
        hold(file, keyed(10))
        hold(file, claim(10, cap=25))
        with pytest.raises(CapReached, match="provider api") as reached:
            hold(file, claim(10, cap=25))
        assert not reached.value.of_key

    def test_sums_are_told_with_keys_and_without(self, file: SpendFile, path: Path) -> None:
        settle(file, hold(file, keyed(10)), 4)
        settle(file, hold(file, keyed(10, key="team-b")), 5)
        settle(file, hold(file, claim(10)), 6)
        hold(file, keyed(10))
        [totals] = read_totals(path, NOON)
        [line] = totals.lines
        assert (line.key, line.amount, line.requests, line.held) == ("", 15, 3, 10)
        a, b = totals.by_key
        assert (a.key, a.amount, a.requests, a.fresh, a.held) == ("team-a", 4, 1, 7, 10)
        assert (b.key, b.amount, b.requests, b.held) == ("team-b", 5, 1, 0)
        assert (totals.of_key("team-a"), totals.of_key("team-c")) == (14, 0)
        file.apply([Settled(ticket=hold(file, keyed(10)))], NOON)
        assert read_totals(path, NOON)[0].of_key("team-a") == 14

    def test_the_day_of_a_key_ends_at_midnight_utc(self, file: SpendFile) -> None:
        midnight = NOON + DAY / 2
        settle(file, hold(file, keyed(10, cap=10), midnight - 1), 10, midnight - 1)
        hold(file, keyed(10, cap=10), midnight)


class TestOldFiles:
    """Files without keys, and gateways that know nothing of them."""

    def test_a_file_without_keys_gets_them_and_nothing_is_lost(self, file: SpendFile, path: Path) -> None:
        with old_gateway(path) as old:
            old.execute(OLD_HOLD, ("2026-11-30", "api", "assistant", "big", 10, NOON + 60))
            old.execute(OLD_BOOK, ("2026-11-30", "api", "assistant", "big", 7, 1, 0, 0, 1, 2, 3, 4))
        before = read_totals(path, NOON)
        assert (before[0].amount(), before[0].held()) == (7, 10)
        hold(file, keyed(1, cap=1))
        [totals] = read_totals(path, NOON)
        assert (totals.amount(), totals.held(), totals.of_key("team-a")) == (7, 11, 1)
        with pytest.raises(CapReached):
            hold(file, claim(10, cap=20))

    def test_an_old_gateway_goes_on_beside_its_heir(self, file: SpendFile, path: Path) -> None:
        """Also one that opens the file once more; what it reads is right, and so are the caps of both."""
        with old_gateway(path) as old:
            row = old.execute(OLD_HOLD, ("2026-11-30", "api", "assistant", "big", 10, NOON + 60)).lastrowid
            settle(file, hold(file, keyed(10)), 4)
            settle(file, hold(file, keyed(10, key="team-b")), 5)
            hold(file, keyed(20))
            old.execute("DELETE FROM held WHERE id = ?", (row,))
            old.execute(OLD_BOOK, ("2026-11-30", "api", "assistant", "big", 7, 1, 0, 0, 1, 2, 3, 4))
            old.execute(OLD_HOLD, ("2026-11-30", "api", "assistant", "big", 10, NOON + 60))
        with old_gateway(path) as again:
            assert again.execute("SELECT sum(amount), sum(requests) FROM spent").fetchone() == (16, 3)
            assert again.execute("SELECT sum(amount) FROM held").fetchone() == (30,)
        [totals] = read_totals(path, NOON)
        assert (totals.amount(), totals.held()) == (16, 30)
        assert (totals.of_key("team-a"), totals.of_key("team-b")) == (24, 5)
        with pytest.raises(CapReached, match=r"spent and \$0.00000000003 held"):
            hold(file, claim(1, cap=46))

    def test_two_that_open_it_at_once_both_may(self, path: Path) -> None:
        with old_gateway(path):
            pass
        workers = [started("hold(file, keyed(10)); print(1)", path) for _ in range(3)]
        assert [worker.communicate(timeout=100)[0] for worker in workers] == ["1\n"] * 3
        assert read_totals(path, NOON)[0].of_key("team-a") == 30


class TestTrouble:
    def test_a_damaged_file_is_refused_and_left_as_it_is(self, file: SpendFile, path: Path) -> None:
        path.write_bytes(b"no database at all, but longer than a header" * 100)
        before = path.read_bytes()
        for _ in range(2):
            with pytest.raises(Unusable, match=r"spend\.db: file is not a database"):
                hold(file, claim())
        with pytest.raises(Unusable):
            read_totals(path, NOON)
        assert path.read_bytes() == before

    def test_damage_inside_is_found_when_it_is_opened(self, file: SpendFile, path: Path) -> None:
        for n in range(200):
            settle(file, hold(file, claim(model=f"model-{n}" * 10)), 4)
        file.close()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = bytearray(path.read_bytes())
        data[4096 * 3 : 4096 * 9] = os.urandom(4096 * 6)
        path.write_bytes(data)
        with pytest.raises(Unusable):
            hold(file, claim())

    def test_a_file_of_a_later_version_is_refused(self, file: SpendFile, path: Path) -> None:
        hold(file, claim())
        file.close()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {VERSION + 1}")
        with pytest.raises(Unusable, match="later version"):
            hold(file, claim())

    def test_a_folder_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(Unusable, match=r"nowhere/spend\.db"):
            hold(SpendFile(tmp_path / "nowhere" / "spend.db"), claim())

    def test_another_who_holds_the_file_is_waited_for_and_then_named(
        self, file: SpendFile, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_file, "BUSY_WAIT", 0.05)
        hold(file, claim())
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unusable, match="locked"):
                hold(file, claim())
            other.execute("ROLLBACK")
        hold(file, claim())
        assert file.totals(NOON).held() == 20

    def test_a_full_disk_changes_nothing(self, path: Path) -> None:
        """The limit on the size of a process's files is as a full disk to it."""
        script = """
            import resource
            hold(file, claim(10))
            size = max(path.stat().st_size, path.with_name("spend.db-wal").stat().st_size)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            refused = 0
            for _ in range(40):
                try:
                    hold(file, claim(10))
                except Unusable:
                    refused += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            held = file.totals(NOON).held()
            hold(file, claim(10))
            assert file.totals(NOON).held() == held + 10
            print(refused, held)
        """
        with started(script, path) as other:
            refused, held = map(int, other.communicate(timeout=100)[0].split())
        assert refused > 0
        assert held == (41 - refused) * 10


def started(script: str, path: Path, seed: int = 0) -> subprocess.Popen[str]:
    """Another process, which runs a script with the names of this module, `path`, `file` and `seed`."""
    head = f"""
        import os
        from pathlib import Path
        from {__name__} import *
        shared_file.BUSY_WAIT = LONG
        path, seed = Path({str(path)!r}), {seed}
        file = SpendFile(path)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    )


class TestProcesses:
    def test_what_a_killed_process_held_counts_in_full(self, file: SpendFile, path: Path) -> None:
        script = "hold(file, claim(10, cap=25)); hold(file, claim(10, cap=25)); os.kill(os.getpid(), 9)"
        with started(script, path) as other:
            assert other.wait(timeout=100) == -signal.SIGKILL
        with pytest.raises(CapReached):
            hold(file, claim(6, cap=25))
        [line] = file.totals(NOON).lines
        assert (line.held, line.unsettled) == (20, 0)
        [line] = read_totals(path, NOON + 61)[0].lines
        assert (line.held, line.unsettled) == (20, 20)

    def test_processes_together_never_go_over_a_cap(self, file: SpendFile, path: Path) -> None:
        """Each sends as fast as it can; of what it held, a third is settled, a third let go, a third left."""
        script = """
            import random
            draw = random.Random(seed)
            for turn in range(120):
                try:
                    ticket = hold(file, claim(draw.randint(1, 20), cap=1_000))
                except CapReached:
                    continue
                what = draw.randrange(3)
                if what == 0:
                    settle(file, ticket, ticket.claim.amount)
                elif what == 1:
                    file.apply([Settled(ticket=ticket)], NOON)
        """
        hold(file, claim(1))
        workers = [started(script, path, seed) for seed in (1, 2, 3)]
        seen = []
        while any(worker.poll() is None for worker in workers):
            totals = file.totals(NOON)
            seen.append(totals.amount() + totals.held())
        assert [worker.communicate()[0] for worker in workers] == ["", "", ""]
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert max(seen) <= 1_000
        totals = file.totals(NOON)
        assert 980 < totals.amount() + totals.held() <= 1_000  # they tried to


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SpendBook]:
    book = SpendBook(path, HandClock(NOON))
    try:
        yield book
    finally:
        await book.close()


class TestBook:
    async def test_of_a_hundred_at_once_as_many_pass_as_the_cap_allows(self, path: Path) -> None:
        async with opened(path) as book:
            found = await asyncio.gather(
                *(book.reserve(claim(10, cap=255)) for _ in range(100)), return_exceptions=True
            )
            assert sum(isinstance(each, Ticket) for each in found) == 25
            assert sum(isinstance(each, CapReached) for each in found) == 75
            for each in found:
                if isinstance(each, Ticket):
                    book.settle(each, amount=1, usage=USAGE)
            assert (await book.totals()).day == day_of(NOON)
            await book.settled()
            assert (book.today.amount(), book.today.held()) == (25, 0)

    async def test_whoever_leaves_while_it_waits_holds_nothing(self, path: Path) -> None:
        async with opened(path) as book:
            asked = [asyncio.create_task(book.reserve(claim(10, cap=100))) for _ in range(10)]
            await asyncio.sleep(0)
            for task in asked[:5]:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await book.settled()
            assert (await book.totals()).held() == 50

    async def test_whoever_leaves_in_the_instant_in_which_it_is_answered_holds_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[asyncio.Task[Ticket]] = []
        answer = SpendBook._told

        def leave(book: SpendBook, *words: Any) -> None:
            answer(book, *words)
            for task in asked:
                task.cancel()

        monkeypatch.setattr(SpendBook, "_told", leave)
        async with opened(path) as book:
            asked += [asyncio.create_task(book.reserve(claim(10, cap=15))) for _ in range(2)]
            await asyncio.wait(asked)
            assert all(task.cancelled() for task in asked)
            await book.settled()
            assert (await book.totals()).held() == 0

    async def test_what_could_not_be_written_is_written_later(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_file, "BUSY_WAIT", 0.01)
        async with opened(path) as book:
            first = await book.reserve(claim(10, cap=100))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                book.settle(first, amount=4, usage=USAGE)
                await book.settled()
                assert "locked" in book.trouble
                with pytest.raises(Unusable):
                    await book.reserve(claim(10, cap=100))
                book.settle(book.unheld(claim(10)), amount=3, usage=USAGE)
                await book.settled()
            await book.reserve(claim(10, cap=100))
            assert book.trouble == ""
            assert (book.today.amount(), book.today.held()) == (7, 10)

    async def test_what_is_owed_at_the_end_is_tried_once_more(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_file, "BUSY_WAIT", 0.01)
        async with opened(path) as book:
            first = await book.reserve(claim(10, cap=100))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                book.settle(first, amount=4, usage=USAGE)
                await book.settled()
        assert read_totals(path, NOON)[0].amount() == 4

    async def test_a_disk_that_hangs_is_waited_for_once(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spend_book, "_PATIENCE", 0.05)
        goes_on = threading.Event()
        apply = SpendFile.apply

        def hangs(self: SpendFile, *words: object) -> object:
            goes_on.wait(60)
            return apply(self, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(SpendFile, "apply", hangs)
        async with opened(path) as book:
            try:
                with pytest.raises(Unusable, match="does not answer"):
                    await book.reserve(claim(10, cap=100))
                monkeypatch.setattr(spend_book, "_PATIENCE", 1e9)
                with pytest.raises(Unusable, match="does not answer"):
                    await book.reserve(claim(10, cap=100))
            finally:
                goes_on.set()
            await book.settled()
            await book.reserve(claim(20, cap=100))
            assert book.today.held() == 20  # what was waited for in vain was let go


def test_a_path_that_cannot_even_be_looked_up_is_unread_and_not_empty(tmp_path: Path) -> None:
    """As one in a directory that others may not search."""
    with pytest.raises(Unusable, match="too long"):
        read_totals(tmp_path / ("x" * 300), NOON)
