"""A node agent's two ends: the metadata service it asks, and the receiver that it reports to."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

# The contract suite runs agents too, so what they need is a module and not a fixture of this directory.
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from node_bench import Imds, Machine, Served, running_imds

from cloud.clock import SystemClock

PATIENCE = 60.0


@pytest.fixture(scope="session")
def imds() -> Iterator[Imds]:
    """A stand-in for the metadata service, in a process of its own."""
    with running_imds() as imds:
        yield imds


@pytest.fixture
def machine(imds, tmp_path):
    """Makes machines; their agents end with the test."""
    made = []

    def make(**values) -> Machine:
        made.append(Machine(imds, tmp_path, **values))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
async def serve() -> AsyncIterator:
    """Serves receivers; they end with the test."""
    made = []

    async def make(clock=None, port: int = 0, tls=None, **settings) -> Served:
        served = Served(clock, **settings)
        made.append(served)
        await served.open(port, tls)
        return served

    yield make
    for served in made:
        await served.close()


@pytest.fixture
def until():
    """Wait until a condition is true."""

    async def wait(condition) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await SystemClock().sleep(0.02)

    return wait
