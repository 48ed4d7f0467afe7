"""A pool's adapters on a played helper of SkyPilot."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from hand_clock import HandClock
from played_sky import PlayedCloud
from sky_stage import Sky, played_settings, region

from cloud.clock import SystemClock
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market, Placement


class Stage:
    """A played cloud and, one after the other, daemons that use it."""

    def __init__(self, directory: Path) -> None:
        self.clock, self.home, self.file = SystemClock(), directory / "home", directory / "launches"
        self.cloud = PlayedCloud(self.home)
        self._made: list[Sky] = []

    def daemon(self, *, clock: Any = None, settings: Any = None, place: Any = None, **given: Any) -> Sky:
        """The adapters of a new daemon on the same ledger, home and cloud."""
        made = Sky(
            settings or played_settings(self.home),
            [place or region()],
            clock or self.clock,
            self.file,
            **given,
        )
        self._made.append(made)
        return made

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true."""
        async with asyncio.timeout(30):
            while not true():
                await self.clock.sleep(0.01)

    async def close(self) -> None:
        for made in self._made:
            await made.close()
        self.cloud.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.close()


@pytest.fixture
def hand_clock() -> HandClock:
    return HandClock()


@pytest.fixture
def asked() -> Callable[..., LaunchRequest]:
    """Makes requests."""

    def make(name: str = "t-1", market: Market = Market.SPOT, **place: str) -> LaunchRequest:
        where = {"region": "us-east-1", "zone": "us-east-1a", "instance_type": "g6.xlarge", **place}
        return LaunchRequest(
            token=name,
            pool="pool",
            placement=Placement(**{"provider": "skypilot", **where}, market=market),
            command=EngineCommand(argv=("engine",), build="b-1"),
        )

    return make
