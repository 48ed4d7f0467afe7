"""The journal's file survives what happens to processes, files and disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.journal.sqlite import SqliteFile, SqliteStore
from orchestrator.journal.store import SCHEMA_VERSION, StoreUnavailable
from policies.actions import ActionKind
from policies.events import IntentOpened, NodeSeen
from policies.memory import Memory
from policies.model import Market, Placement

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


def seen(number: int) -> NodeSeen:
    return NodeSeen(
        at=float(number),
        node=f"i-{number}",
        token=f"p/1/{number}",
        placement=PLACE,
        launched_at=float(number),
        price=1.0,
        address=f"10.0.0.{number}:1",
        standby=None,
    )


WRITER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from orchestrator.journal.sqlite import SqliteFile, SqliteStore
    from policies.events import NodeMissing

    async def main() -> None:
        store = SqliteStore.open(Path(sys.argv[1]), now=1.0)
        number = await store.last_seq()
        while True:
            batch = [NodeMissing(at=1.0, node=f"n{number + i}") for i in range(7)]
            await store.append("p", batch)
            number += 7
            print(number, flush=True)

    asyncio.run(main())
""")


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_was_told_is_written(tmp_path: Path) -> None:
    """kill -9 at some instant of a stream of writes, four times on one file."""
    path = tmp_path / "journal.db"
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(5)]
            os.kill(writer.pid, signal.SIGKILL)
            told += [int(line) for line in writer.stdout]
        finally:
            writer.kill()
            writer.communicate(timeout=60)
        store = SqliteStore.open(path, now=2.0, inline=True)
        try:
            assert store.set_aside is None
            with sqlite3.connect(path) as db:
                nodes = [row[0] for row in db.execute("SELECT node FROM events ORDER BY seq")]
        finally:
            store.close()
        assert len(nodes) >= told[-1]
        assert len(nodes) % 7 == 0  # no half batch
        assert nodes == [f"n{i}" for i in range(len(nodes))]


# -- files that are not what they should be ------------------------------------------------------------


async def filled(path: Path) -> None:
    store = SqliteStore.open(path, now=1.0, inline=True)
    await store.append("p", [seen(i) for i in range(500)])
    launches = [IntentOpened(at=1.0, token=f"p/1/{i}", kind=ActionKind.LAUNCH, node="") for i in range(9)]
    await store.append("p", launches)
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        *("garbage", "torn page", "overwritten pages", "no version", "-1", "0", "1"),
        *("bytes", "file format", "write version", "index"),
    ],
)
async def test_a_corrupt_journal_is_set_aside_whole(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.db"
    await filled(path)
    body = bytearray(path.read_bytes())
    match damage:
        case "garbage":
            body = bytearray(b"this is no database" * 500)
        case "torn page":
            body = body[:-5000]
        case "overwritten pages":
            body[8192:40960] = b"\xa5" * 32768
        case "no version":
            with sqlite3.connect(path) as db:
                db.execute("UPDATE meta SET value='what' WHERE key='schema'")
            body = bytearray(path.read_bytes())
        case "-1" | "0" | "1":  # a version that it is not of
            with sqlite3.connect(path) as db:
                db.execute("UPDATE meta SET value=? WHERE key='schema'", (damage,))
            body = bytearray(path.read_bytes())
        case "bytes":  # in a name that the message of SQLite repeats
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA writable_schema=ON")
                db.execute("UPDATE sqlite_master SET name=CAST(x'C181EE' AS TEXT) WHERE type='index'")
                db.execute("UPDATE sqlite_master SET tbl_name='gone' WHERE type='index'")
            body = bytearray(path.read_bytes())
        case "file format":
            body[44:48] = b"\xa5" * 4
        case "write version":  # SQLite reads such a file and does not write to it
            body[18] = 0xA5
        case "index":  # all that it says can be read, and no intent can be opened any more
            with sqlite3.connect(path) as db:
                query = "SELECT rootpage FROM sqlite_master WHERE name='sqlite_autoindex_intents_1'"
                begin = 4096 * (db.execute(query).fetchone()[0] - 1)
            cells = int.from_bytes(body[begin + 3 : begin + 5])
            for number in range(cells):
                at = begin + 8 + 2 * number
                cell = begin + int.from_bytes(body[at : at + 2])
                body[cell + 1] = 0x7F  # longer than its header can be
    path.write_bytes(body)
    store = SqliteStore.open(path, now=1234.5, inline=True)
    assert store.set_aside == tmp_path / "journal.db.corrupt-1234"
    assert store.set_aside.read_bytes()[:4096] == bytes(body[:4096])
    assert await store.load("p") == Memory()
    await store.append("p", [seen(1)])
    assert list((await store.load("p")).nodes) == ["i-1"]
    store.close()


async def test_a_journal_with_an_entry_of_an_impossible_length_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has an error of its own for it; here its limit is one that every journal exceeds."""
    path = tmp_path / "journal.db"
    await filled(path)
    connect, tried = SqliteFile.connect, []

    def first_with_a_limit(file: SqliteFile) -> sqlite3.Connection:
        db = connect(file)
        if not tried:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100)
        tried.append(db)
        return db

    monkeypatch.setattr(SqliteFile, "connect", first_with_a_limit)
    store = SqliteStore.open(path, now=5.0, inline=True)
    store.close()
    assert store.set_aside is not None
    assert store.set_aside.exists()


async def test_an_older_corrupt_journal_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for name in ("", "-2", "-3"):
        path.write_bytes(b"garbage" * 1000 + name.encode())
        store = SqliteStore.open(path, now=5.0, inline=True)
        store.close()
        assert store.set_aside == tmp_path / f"journal.db.corrupt-5{name}"
    assert (tmp_path / "journal.db.corrupt-5").read_bytes().endswith(b"garbage")


async def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.db").touch()
    store = SqliteStore.open(tmp_path / "journal.db", now=1.0, inline=True)
    assert store.set_aside is None
    assert await store.load("p") == Memory()
    store.close()


async def test_a_newer_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION + 1),))
    with pytest.raises(StoreUnavailable, match=r"journal.db: written by a newer version \(schema 4"):
        SqliteStore.open(path, now=1.0)
    with sqlite3.connect(path) as db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    assert tables == [("meta",)]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"missing/journal.db: cannot be opened: check that the state"):
        SqliteStore.open(tmp_path / "missing" / "journal.db", now=1.0)


async def test_a_file_held_by_another_process_is_unavailable_and_then_is_not(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "journal.db", now=1.0, inline=True)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process holds the file"):
        await store.append("p", [seen(1)])
    assert await store.events() == []  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    await store.append("p", [seen(1)])
    store.close()


# -- full disks ----------------------------------------------------------------------------------------

FULL = textwrap.dedent("""
    import asyncio, resource, sys
    from pathlib import Path
    from orchestrator.journal.store import StoreUnavailable
    from orchestrator.journal.sqlite import SqliteFile, SqliteStore
    from policies.events import NodeMissing

    def batch(first):
        return [NodeMissing(at=1.0, node=f"n{i}") for i in range(first, first + 200)]

    async def main() -> None:
        store = SqliteStore.open(Path(sys.argv[1]), now=1.0)
        await store.append("p", batch(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        written = 200
        try:
            while written < 100_000:
                await store.append("p", batch(written))
                written += 200
        except StoreUnavailable as error:
            print(error)
        assert len(await store.events(limit=10**6)) == written, "what was there can be read"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.append("p", batch(written))
        found = [e.node for e in await store.events(limit=10**6)]
        assert found == [f"n{i}" for i in range(written + 200)], "nothing is missing and nothing is double"
        store.close()

    asyncio.run(main())
""")


@pytest.mark.slow
def test_a_full_disk_is_survived_and_recovered_from(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "journal.db")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr == ""
    assert "journal.db: the disk" in done.stdout
    assert "notices" not in done.stdout, "what follows of it is for those to say who know"


async def test_sqlite_that_has_no_page_left_says_that_the_disk_is_full(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "journal.db", now=1.0, inline=True)
    await store.append("p", [seen(1)])
    await store._writer.run(lambda db: db.execute("PRAGMA max_page_count=12").fetchone())
    with pytest.raises(StoreUnavailable, match="the disk is full: free some space"):
        await store.append("p", [seen(i) for i in range(10_000)])
    before = len(await store.events(limit=10**6))
    await store._writer.run(lambda db: db.execute("PRAGMA max_page_count=1000000").fetchone())
    await store.append("p", [seen(2)])
    assert len(await store.events(limit=10**6)) == before + 1
    store.close()


async def test_text_that_is_none_is_an_entry_that_says_nothing(tmp_path: Path) -> None:
    """A block of noise on the disk may leave the file sound to SQLite and a word in it that is no UTF-8."""
    file = tmp_path / "journal.db"
    store = SqliteStore.open(file, now=1.0)
    await store.append("p", [seen(1), seen(2)])
    store.close()
    with sqlite3.connect(file) as db:
        db.execute("UPDATE events SET kind=CAST(x'0cf8a8a80d' AS TEXT) WHERE seq=1")
    again = SqliteStore.open(file, now=2.0)
    assert list((await again.load("p")).nodes) == ["i-2"]
    assert again.set_aside is None
    again.close()
