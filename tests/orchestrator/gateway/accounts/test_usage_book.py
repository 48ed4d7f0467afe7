"""The usage book: what is counted reaches the file, late where the disk is, once and in bounded memory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cloud.clock import SystemClock
from orchestrator.gateway.accounts import shared_file, usage_book
from orchestrator.gateway.accounts.usage_book import UsageBook
from orchestrator.gateway.accounts.usage_file import Sums, UsageFile, read_usage
from tests.support.hand_clock import HandClock

HOUR = 498_900
ALL = (0, 10**9)


def one(fresh: int = 1) -> Sums:
    return [1, 0, 0, fresh, 0, 0, 0, 0.0, 0.0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def clock() -> HandClock:
    return HandClock(HOUR * 3600.0)


@asynccontextmanager
async def opened(path: Path, clock: HandClock) -> AsyncIterator[UsageBook]:
    """A book that writes when it is told to."""
    book = UsageBook(path, clock)
    try:
        yield book
    finally:
        await book.written()


def count(book: UsageBook, fresh: int = 1, key: str = "team-a") -> None:
    book.add(key, "assistant", "pool/chat", "", one(fresh))


def found(path: Path) -> list[tuple[int, int, int]]:
    return [(row.hour - HOUR, row.requests, row.fresh) for row in read_usage(path, *ALL)]


def block(path: Path) -> None:
    """Have no file be made there."""
    path.mkdir()


def unblock(path: Path) -> None:
    path.rmdir()


def beside(path: Path) -> list[str]:
    """What a database that is open has beside it."""
    return [each.name for each in path.parent.iterdir() if each != path]


async def test_sums_of_an_hour_go_into_one_row(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as book:
        for fresh in (1, 2, 3):
            count(book, fresh)
        await book.written()
        assert book.waiting == 0
        count(book, 4)
        clock.at += 3600
        count(book, 5)
    assert found(path) == [(0, 4, 10), (1, 1, 5)]


async def test_two_gateways_add_to_the_same_rows(path: Path, clock: HandClock) -> None:
    async with opened(path, clock) as old, opened(path, clock) as heir:
        for _ in range(5):
            count(old, 1)
            count(heir, 2)
            await old.written()
            await heir.written()
    assert found(path) == [(0, 10, 15)]


async def test_what_could_not_be_written_is_written_later_and_once(
    path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_file, "BUSY_WAIT", 0.01)
    async with opened(path, clock) as book:
        count(book)
        await book.written()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other, capture_logs() as logs:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(3):
                count(book)
                await book.written()
                assert "locked" in book.trouble
                assert book.waiting == 1
            other.execute("ROLLBACK")
        assert [each["event"] for each in logs] == ["usage_file.write_failed"]
        clock.at += 3600
        count(book)
        await book.written()
        assert book.trouble == ""
    assert found(path) == [(0, 4, 4), (1, 1, 1)]


async def test_a_disk_that_hangs_is_told_and_holds_up_nobody(
    path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    add = UsageFile.add

    def hangs(self: UsageFile, *words: object) -> None:
        goes_on.wait(60)
        add(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(UsageFile, "add", hangs)
    async with opened(path, clock) as book:
        count(book)
        book._write_on()
        assert book.trouble == ""
        clock.at += 60
        with capture_logs() as logs:
            book._look()
            book._look()
        assert "does not answer" in book.trouble
        assert [each["event"] for each in logs] == ["usage_file.write_failed"]
        count(book)
        count(book, key="team-b")
        book._write_on()  # no second one begins
        assert book.waiting == 3
        goes_on.set()
        await book.written()
        assert book.trouble == ""
        await book.written()
    assert found(path) == [(0, 2, 2), (0, 1, 1)]


async def test_a_file_that_cannot_be_written_for_long_takes_bounded_memory(
    path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_book, "MOST_ROWS", 10)
    block(path)
    async with opened(path, clock) as book:
        for hour in range(200):
            clock.at = (HOUR + hour) * 3600.0
            for key in ("a", "b"):
                count(book, key=key)
            if hour % 3 == 0:
                await book.written()
        assert book.waiting <= 12
        unblock(path)
        await book.written()
    rows = found(path)
    assert sum(requests for _, requests, _ in rows) == 400  # not one is lost
    assert rows[0][0] == 0


async def test_the_end_writes_what_waits(path: Path) -> None:
    book = UsageBook(path, SystemClock())
    book.start()
    count(book, 3)
    await book.close()
    assert [row.fresh for row in read_usage(path, *ALL)] == [3]
    assert beside(path) == []  # it was let go of


async def test_the_end_says_what_is_lost(path: Path) -> None:
    block(path)
    book = UsageBook(path, SystemClock())
    book.start()
    count(book)
    count(book, key="team-b")
    with capture_logs() as logs:
        await book.close()
    assert [each["requests"] for each in logs if each["event"] == "usage.lost"] == [2]


async def test_the_end_does_not_wait_for_a_disk_that_hangs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(usage_book, "_LAST", 0.01)
    monkeypatch.setattr(UsageFile, "add", lambda *_: goes_on.wait(60))
    book = UsageBook(path, SystemClock())
    book.start()
    count(book)
    with capture_logs() as logs:
        await book.close()
    goes_on.set()
    assert [each["event"] for each in logs] == ["usage.lost"]


@pytest.mark.parametrize("made", [Path.mkdir, os.mkfifo, lambda path: path.write_text("no database")])
async def test_a_file_that_is_none_is_told_at_the_start(path: Path, made: Callable[[Path], object]) -> None:
    made(path)
    book = UsageBook(path, SystemClock())
    with capture_logs() as logs:
        book.start()
        await book.written()
    assert [event["event"] for event in logs] == ["usage_file.write_failed"]
    assert str(path) in book.trouble
    await book.close()


async def test_without_a_file_nothing_is_kept() -> None:
    book = UsageBook(None, SystemClock())
    book.start()
    count(book)
    assert (book.waiting, book.trouble) == (0, "")
    await book.close()
