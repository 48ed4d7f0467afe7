"""What the tests of the daemon's parts share: virtual time, so that waiting costs nothing, and quiet logs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog

from orchestrator.virtual_time import VirtualClock, virtual_time

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
