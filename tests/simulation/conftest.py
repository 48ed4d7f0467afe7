"""What the simulation tests share: silence, the scenarios, and a check that names the run that failed."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

# The scenarios are also played by plain processes (replay.py), so they are a module and not fixtures.
sys.path.insert(0, str(Path(__file__).parent))

from jobs import memory_folder

from orchestrator.simulation.simulate import Outcome

Sound = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of runs would log millions of lines."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """State directories that the runs make for themselves wait for no disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(memory_folder()))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A state directory that waits for no disk."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        yield Path(folder)


@pytest.fixture
def sound() -> Sound:
    """Fail a test whose run broke an invariant, with the last lines of its trace."""

    def check(outcome: Outcome, replay: str = "") -> Outcome:
        if outcome.broken:
            broken = "\n".join(f"  {b}" for b in outcome.broken)
            tail = "\n".join(f"  {line}" for line in outcome.tail[-40:])
            pytest.fail(f"broken:\n{broken}\nlast lines of the trace:\n{tail}\n{replay}", pytrace=False)
        return outcome

    return check
