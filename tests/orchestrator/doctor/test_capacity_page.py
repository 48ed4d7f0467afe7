"""The table of what the loss of a zone costs says what the doctor says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.doctor.pool import capacity
from policies.model import Pool, StandbyRules

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "capacity.md"
ROW = re.compile(r"(?m)^\| (\d+) \| (\d+) \+ (\d+) \| (\d+) \| (.*) \|$")
FIRST = PAGE.read_text(encoding="utf-8").partition("## A whole zone fails")[0]
ZONES = [int(zones) for zones in re.findall(r"(\d+) zones \|", FIRST)]


@pytest.mark.parametrize("row", ROW.findall(FIRST), ids=lambda row: f"{row[0]}-{row[3]}")
def test_the_table_and_the_doctor_agree(row: tuple[str, ...]) -> None:
    replicas, spot, on_demand, hot = map(int, row[:4])
    pool = Pool(name="pool", replicas=replicas, standby=StandbyRules(hot=hot))
    assert (pool.spot_wanted, pool.on_demand_floor) == (spot, on_demand)
    for zones, cell in zip(ZONES, row[4].split(" | "), strict=True):
        finding = next(f for f in capacity(pool, zones) if f.subject.endswith("zones lost"))
        left = cell.split()[0]
        assert f"leaves {left} of {replicas} " in finding.text
        assert cell.endswith("*") == (finding.state.value == "warn")
