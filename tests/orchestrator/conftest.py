"""What the tests of the daemon's parts share: virtual time, so that waiting costs nothing, and quiet logs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cloud.sim.world import Pace, Sale
from orchestrator.config import build_config
from orchestrator.simulate import Simulation
from orchestrator.virtual_time import VirtualClock, virtual_time
from policies.model import Market, Placement

Play = Callable[[Callable[[VirtualClock], Awaitable[Any]]], Any]


@pytest.fixture
def play() -> Play:
    """Runs a coroutine function on virtual time; it is given the clock."""

    def run(work: Callable[[VirtualClock], Awaitable[Any]]) -> Any:
        with virtual_time() as loop:

            async def whole() -> Any:
                return await work(VirtualClock(loop))

            return loop.run_until_complete(whole())

    return run


@pytest.fixture
def quiet() -> Iterator[None]:
    """No log lines: for tests that provoke faults by the dozen."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a daemon that lost a spot node and replaced it, stopped in good order.

    For reading only: tests that change the journal copy it first.
    """
    folder = tmp_path_factory.mktemp("recorded")
    daemon = {"state_dir": "state", "listen": "off", "record_turns": 10.0}
    config = build_config({"daemon": daemon, "pool": {"p": {"replicas": 4}}}, base=folder)
    sales = [
        Sale(placement=Placement("sim", "r", zone, "gpu", market), price=1.0 + number, capacity=9)
        for number, market in enumerate(Market)
        for zone in "ab"
    ]
    sim = Simulation(config, sales=sales, pace=Pace(boot=(1.0, 2.0), load=(1.0, 2.0), list_lag=(0.1, 0.2)))

    async def script(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.settle()
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=30.0, notice=30.0)
        await sim.settle()
        await sim.stop(process)

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        outcome = sim.run(script)
    finally:
        structlog.configure(**before)
    assert outcome.broken == ()
    return folder / "state"
