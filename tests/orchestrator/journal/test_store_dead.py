"""A database that does not answer: nobody waits for it twice, and no write is doubtful afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.errors import Denied
from orchestrator.journal.database import Fence
from orchestrator.journal.postgres import PATIENCE, PostgresDatabase, PostgresStore
from orchestrator.journal.store import StoreUnavailable, Superseded
from orchestrator.lease.shared import SharedLease
from policies.events import DaemonStarted, NodeMissing

pytestmark = pytest.mark.timeout(100)


class Wire:
    """The network between a daemon and its database: it can fall silent, and be cut at a chosen word."""

    def __init__(self, directory: Path, server: Path) -> None:
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = [self._listener]
        self.cut_after = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """Nothing that is sent arrives; connections stay open."""
        self._flows.clear()

    def speak(self) -> None:
        """What was sent meanwhile arrives."""
        self._flows.set()

    def close(self) -> None:
        self.speak()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._server))
                self._sockets += [near, far]
                for pair in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, out: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if out and self.cut_after and self.cut_after in data:
                    self.cut_after = b""
                    source.shutdown(socket.SHUT_RDWR)  # the answer finds nobody, however quick it is
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    made = Wire(tmp_path_factory.mktemp("w"), postgres.socket())
    yield made
    made.close()


@pytest.fixture
def near(postgres: Any, wire: Wire) -> PostgresDatabase:
    """A new database, reached over the wire."""
    name = postgres.database().partition("?")[0].rpartition("/")[2]
    directory = wire._listener.getsockname().rpartition("/")[0]
    return PostgresDatabase(postgres.url(name, directory))


@pytest.fixture
def store(near: PostgresDatabase) -> Iterator[PostgresStore]:
    made = PostgresStore.open(near)
    yield made
    made.close()


def gone(node: str) -> NodeMissing:
    return NodeMissing(at=1.0, node=node)


async def nodes(store: PostgresStore) -> list[str | None]:
    return [e.node for e in await store.events()]


async def until_written(store: PostgresStore, node: str) -> None:
    """Try again, as the loop does at every turn, until the database answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                await store.append("p", [gone(node)])
            except Superseded:
                raise
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_silent_database_is_waited_for_once(store: PostgresStore, wire: Wire) -> None:
    await store.next_epoch(10.0)
    await store.append("p", [gone("a")])
    wire.fall_silent()
    with pytest.raises(StoreUnavailable, match=r"did not answer in 2 s"):
        await store.append("p", [gone("b")])
    loop = asyncio.get_running_loop()
    turned: list[float] = []
    for _ in range(50):
        began = loop.time()
        with pytest.raises(StoreUnavailable):
            await store.append("p", [gone("b")])
        turned.append(loop.time() - began)
        await asyncio.sleep(0.02)
    assert sorted(turned)[25] < 0.1, "callers wait for a database that is known to be silent"
    wire.speak()
    await until_written(store, "c")
    assert await nodes(store) == ["a", "c"], "what was refused was not written later either"


async def test_what_reads_a_whole_memory_may_take_longer(store: PostgresStore, wire: Wire) -> None:
    await store.next_epoch(10.0)
    await store.append("p", [gone("a")])
    wire.fall_silent()
    loading = asyncio.create_task(store.load("p"))
    await asyncio.wait({loading}, timeout=PATIENCE + 0.5)
    assert not loading.done()
    wire.speak()
    await loading


@pytest.mark.slow
async def test_a_frozen_server_is_waited_for_once(postgres: Any) -> None:
    """SIGSTOP of the server process that works for the writer: the kernel still takes what is sent."""
    address = postgres.database()
    store = PostgresStore.open(PostgresDatabase(address))
    try:
        await store.next_epoch(10.0)
        await store.append("p", [gone("a")])
        working = await store._writer.run(lambda db: db.execute("SELECT pg_backend_pid()").fetchone()[0])
        os.kill(working, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match=r"did not answer in 2 s"):
                await store.append("p", [gone("b")])
            await until_written(store, "c")  # over another connection
        finally:
            os.kill(working, signal.SIGCONT)
        assert await nodes(store) == ["a", "c"]
    finally:
        store.close()


async def test_a_killed_connection_is_made_again(store: PostgresStore, postgres: Any) -> None:
    await store.next_epoch(10.0)
    await store.append("p", [gone("a")])
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'"
    postgres.execute("postgres", kill)
    with pytest.raises(StoreUnavailable):
        await store.append("p", [gone("b")])
    await until_written(store, "c")
    assert await nodes(store) == ["a", "c"]


async def test_a_read_on_a_connection_that_broke_while_nobody_read_is_answered(
    store: PostgresStore, postgres: Any
) -> None:
    """The server was started again at night; the first look at the history comes in the morning."""
    await store.next_epoch(10.0)
    await store.append("p", [gone("a")])
    before = await store.events()
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'"
    postgres.execute("postgres", kill)
    assert await store.events() == before


async def test_a_commit_whose_answer_was_lost_ends_the_daemon(store: PostgresStore, wire: Wire) -> None:
    """It was done: memory, which was told that it was not, tells another story than the journal."""
    await store.next_epoch(10.0)
    await store.append("p", [gone("a")])
    wire.cut_after = b"COMMIT"
    with pytest.raises(StoreUnavailable) as lost:
        await store.append("p", [gone("b")])
    assert not isinstance(lost.value, Superseded)
    with pytest.raises(Superseded, match="a write whose acknowledgement was lost"):
        await until_written(store, "b")
    assert await nodes(store) == ["a", "b"], "once"


async def test_a_commit_that_never_arrived_is_just_repeated(store: PostgresStore, wire: Wire) -> None:
    await store.next_epoch(10.0)
    await store.append("p", [gone("a")])
    wire.cut_after = b"FOR SHARE"
    with pytest.raises(StoreUnavailable):
        await store.append("p", [gone("b")])
    await until_written(store, "b")
    assert await nodes(store) == ["a", "b"]


async def test_a_write_under_way_holds_up_the_next_epoch_and_not_the_other_way(postgres: Any) -> None:
    """Between the look at the epoch and the commit nobody can take over."""
    address = postgres.database()
    old, new = (PostgresStore.open(PostgresDatabase(address)) for _ in range(2))
    try:
        await old.next_epoch(10.0)
        entered, leave = threading.Event(), threading.Event()

        def slow(db: Any) -> None:
            entered.set()
            leave.wait(30)
            db.execute("INSERT INTO events (pool, at, kind, body) VALUES ('p', 1, 'Slow', ?)", (b"{}",))

        writing = asyncio.create_task(old._writer.run(slow))
        await asyncio.to_thread(entered.wait, 30)
        taking = asyncio.create_task(new.next_epoch(11.0))
        await asyncio.sleep(0.3)
        assert not taking.done(), "an epoch began in the middle of a write of the one before"
        leave.set()
        await writing
        assert await taking == 11
        with pytest.raises(Superseded):
            await old.append("p", [gone("b")])
        await new.append("p", [DaemonStarted(at=1.0, epoch=11)])
        assert [e.kind for e in await new.events()] == ["Slow", "DaemonStarted"]
    finally:
        old.close()
        new.close()


@pytest.mark.slow
async def test_a_holder_frozen_between_two_statements_of_a_write_holds_nobody_up(postgres: Any) -> None:
    """Its locks are not idle ones for the server, whose limits do not end them."""
    database = PostgresDatabase(postgres.database())
    database.prepare()
    old, new = (SharedLease(database, clock=Now(), seat=seat, pools="p", seconds=1.0) for seat in "ab")
    holder = await old.acquire()
    frozen = database.connect()
    with contextlib.ExitStack() as stack:
        stack.callback(frozen.close)
        stack.enter_context(contextlib.suppress(database.errors))  # it was ended
        stack.enter_context(database.transaction(frozen, Fence(epoch=holder.epoch)))
        wire: Any = frozen.raw.pgconn
        wire.enter_pipeline_mode()
        wire.send_query_params(b"SELECT 1", [])
        wire.send_flush_request()
        wire.flush()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(StoreUnavailable, Denied):
                    assert (await new.acquire()).epoch > holder.epoch
                    break
                await asyncio.sleep(0.1)
    await old.release()
    await new.release()


async def test_a_stop_does_not_wait_for_a_silent_database(near: PostgresDatabase, wire: Wire) -> None:
    store = PostgresStore.open(near)
    await store.next_epoch(10.0)
    wire.fall_silent()
    writing = asyncio.create_task(store.append("p", [gone("a")]))
    await asyncio.sleep(0.05)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    store.close()  # returns


class Now:
    """The time of day and of the host, as the machine tells it."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    steady = now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.mark.slow
async def test_a_lease_runs_out_without_an_answer_and_is_held_again_after(
    near: PostgresDatabase, wire: Wire
) -> None:
    near.prepare()
    lease = SharedLease(near, clock=Now(), seat="a", pools="p", seconds=1.0)
    await lease.acquire()
    keeping = asyncio.create_task(lease.keep())
    try:
        for _ in range(2):
            wire.fall_silent()
            async with asyncio.timeout(30):
                while lease.valid():  # noqa: ASYNC110 - time passes
                    await asyncio.sleep(0.01)
            wire.speak()
            async with asyncio.timeout(30):
                while not lease.valid():  # noqa: ASYNC110 - another task renews
                    await asyncio.sleep(0.01)
        assert not keeping.done()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await lease.release()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://orchestrator@/missing?host={host}", r'refuses \(database "missing" does not exist\)'),
        ("postgresql://orchestrator@/p?host=/nowhere", r"cannot be reached \(.*\): check the server"),
        ("postgresql://orchestrator@/p?bad=1", "is no connection URI: "),
    ],
)
def test_a_database_that_cannot_be_opened_is_named(postgres: Any, address: str, said: str) -> None:
    with pytest.raises(StoreUnavailable, match=said) as refused:
        PostgresDatabase(address.format(host=postgres.directory)).prepare()
    assert str(refused.value).startswith("postgresql://orchestrator@/")


def test_another_table_meta_is_left_alone(postgres: Any) -> None:
    address = postgres.database()
    postgres.execute(address, "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
    with pytest.raises(StoreUnavailable, match="is no journal's; give the pool a database of its own"):
        PostgresDatabase(address).prepare()
    assert postgres.execute(address, "SELECT COUNT(*) FROM meta") == [(0,)]


def test_two_daemons_may_make_the_tables_at_the_same_moment(postgres: Any) -> None:
    address = postgres.database()
    failed: list[BaseException] = []

    def prepare() -> None:
        try:
            PostgresDatabase(address).prepare()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
