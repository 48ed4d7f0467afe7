"""Toy markets, and a recorded one where it is present."""

from pathlib import Path

import pytest

from cloud.local.spotset import read_spotset
from orchestrator.backtest.scenario import Scenario, Tape

TRACES = Path(__file__).parents[4] / "shared" / "traces"


@pytest.fixture
def market():
    """Builds a scenario from rows of (time, capacity, spot price) per zone; on-demand costs 1 USD/h."""

    def build(zones, *, replicas=1, seconds=36_000.0, on_demand=1.0):
        tapes = tuple(
            Tape(zone=name, region=name[0], on_demand_price=on_demand, rows=rows)
            for name, rows in zones.items()
        )
        return Scenario(name="toy", tapes=tapes, replicas=replicas, seconds=seconds)

    return build


@pytest.fixture
def recorded():
    """Reads a recorded set; skips where it is not present."""

    def read(name):
        if not (TRACES / name / "set.json").is_file():
            pytest.skip(f"the recorded set {name} is not here")
        return read_spotset(TRACES / name)

    return read
