"""What systemd hears: ready after a whole turn, alive only through turns, the pool's truth, stopping."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloud.sim.world import Sale
from orchestrator.config.load import build_config
from orchestrator.daemon.daemon import Daemon
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import Simulation
from orchestrator.supervision import Supervisor
from policies.events import Event, IntentOpened
from policies.model import Market, Placement

WATCHDOG = 30.0


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "NOTIFY_SOCKET": self.address,
            "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
            "WATCHDOG_PID": str(os.getpid()),
        }

    def heard(self) -> list[str]:
        """Every line since the last look."""
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def test_without_a_manager_nothing_is_said_and_nothing_is_asked() -> None:
    supervisor = Supervisor({"WATCHDOG_USEC": "30000000"})
    assert supervisor.watchdog is None
    supervisor.works(1.0, lambda: pytest.fail("nobody asked how it is"))
    supervisor.stops("")


def test_the_first_work_makes_ready_and_each_feeds_the_watchdog(manager: Manager) -> None:
    supervisor = Supervisor(manager.environment)
    assert supervisor.watchdog == WATCHDOG
    supervisor.works(100.0, lambda: "one\nline")
    assert manager.heard() == ["READY=1", "STATUS=one line", "WATCHDOG=1"]
    supervisor.works(100.1, lambda: "one\nline")
    assert manager.heard() == [], "neither a new status nor time for a sign of life"
    supervisor.works(100.0 + WATCHDOG / 2, lambda: "other")
    assert manager.heard() == ["STATUS=other", "WATCHDOG=1"]
    supervisor.works(3.0, lambda: "other")
    assert manager.heard() == ["WATCHDOG=1"], "a clock that was set back silences nothing"


def test_an_abstract_address_and_a_watchdog_for_another_process() -> None:
    name = f"orchestrator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        supervisor = Supervisor({"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"})
        assert supervisor.watchdog is None
        supervisor.stops("bye")
        manager.settimeout(5.0)
        assert manager.recv(4096) == b"STOPPING=1\nSTATUS=bye"


def test_a_manager_that_is_gone_or_does_not_read_stops_nobody(manager: Manager) -> None:
    supervisor = Supervisor(manager.environment)
    for number in range(2_000):  # far more than a socket's buffer holds
        supervisor.works(float(number * WATCHDOG), lambda number=number: f"status {number}")
    manager.close()
    os.unlink(manager.address)
    supervisor.works(1.0, lambda: "nobody hears this")


def test_it_says_so_too_when_the_process_has_no_descriptor_left(manager: Manager) -> None:
    supervisor = Supervisor(manager.environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", _no_descriptor)
        supervisor.works(1.0, lambda: "fine")
    assert "WATCHDOG=1" in manager.heard()


def _no_descriptor(*_: Any, **__: Any) -> socket.socket:
    raise OSError(24, "Too many open files")


class StuckStore(RecordedStore):
    """A journal whose disk never answers a write of certain events, once `stuck` names their types."""

    stuck: tuple[type, ...] = ()
    waits = False

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        if any(isinstance(event, StuckStore.stuck) for event in events):
            StuckStore.waits = True
            await asyncio.Event().wait()
        await super().append(pool, events)

    async def charge(self, pool: str, *arguments: Any, **keywords: Any) -> None:
        if StuckStore.stuck:
            await asyncio.Event().wait()
        await super().charge(pool, *arguments, **keywords)


@pytest.mark.parametrize(("stuck", "alive"), [(object, True), (IntentOpened, False)])
def test_only_completed_turns_feed_the_watchdog(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: type, alive: bool
) -> None:
    """A journal that hangs is a state of the pool, whose turns go on; the write of what costs money is waited
    for. A loop that waits for ever is found although the process is awake; a tick may not starve it."""
    monkeypatch.setattr(StuckStore, "stuck", ())
    monkeypatch.setattr(StuckStore, "waits", False)
    supervised = partial(Daemon, supervisor=Supervisor(manager.environment))
    monkeypatch.setattr("orchestrator.simulation.simulate.Daemon", supervised)
    daemon = {"state_dir": "state", "listen": "off", "tick": 600.0}
    config = build_config({"daemon": daemon, "pool": {"p": {"replicas": 4}}}, base=tmp_path)
    sales = [
        Sale(placement=Placement("sim", "r", "a", "gpu", market), price=1.0, capacity=9) for market in Market
    ]
    heard: list[str] = []

    async def script(sim: Simulation) -> None:
        sim.furnish()
        sim.boot()
        await sim.settle()
        heard.extend(manager.heard())
        for _ in range(10):
            await sim.clock.sleep(WATCHDOG)
            assert "WATCHDOG=1" in manager.heard()
        StuckStore.stuck = (stuck,)
        sim.world.reclaim(next(m.id for m in sim.world.of("p") if m.live))
        while not StuckStore.waits:
            await sim.clock.sleep(1.0)
        await sim.clock.sleep(10.0)
        heard.extend(manager.heard())
        for _ in range(20):
            await sim.clock.sleep(WATCHDOG)
            assert ("WATCHDOG=1" in manager.heard()) is alive
        StuckStore.stuck = ()
        await sim.clock.sleep(2 * WATCHDOG)
        assert ("WATCHDOG=1" in manager.heard()) is alive

    sim = Simulation(config, sales=sales, store=StuckStore)
    sim.run(script)
    assert heard[0] == "READY=1"
    assert "STATUS=p: ok, 4 of 4 serving, 4 ready (2 spot, 2 on-demand)" in heard
    assert not alive or any(line.startswith("STATUS=p: degraded") for line in heard)
