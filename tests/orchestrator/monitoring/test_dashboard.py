"""The Grafana dashboard by itself. A system test puts its queries to a live Prometheus."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitoring import dashboard

ROOT = Path(__file__).parents[3]
BOARD: dict[str, Any] = json.loads(dashboard.text())
PANELS: list[dict[str, Any]] = [p for p in BOARD["panels"] if p["type"] != "row"]


def test_every_row_of_the_reference_is_there_and_filled() -> None:
    rows = [p["title"] for p in BOARD["panels"] if p["type"] == "row"]
    assert rows == list(dashboard.ROWS)
    page = (ROOT / "docs" / "how-to" / "alerts.md").read_text(encoding="utf-8")
    assert f"Its rows: {', '.join(rows[:-1]).lower()}" in " ".join(page.split()).replace("GPUs", "gpus")


def test_panels_do_not_lie_on_each_other() -> None:
    assert len({p["id"] for p in BOARD["panels"]}) == len(BOARD["panels"])
    for one, other in combinations((p["gridPos"] for p in BOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= dashboard.WIDTH for p in BOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert "POOL" not in target["expr"]
        assert target["expr"].count("(") == target["expr"].count(")")
        assert target["expr"].count("{") == target["expr"].count("}")


def test_panels_ask_only_for_metrics_that_there_are() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"(?m)^\| `(\w+)` \|", page))
    known |= {f"{name}_bucket" for name in known}
    asked = {
        name
        for panel in PANELS
        for target in panel["targets"]
        for name in re.findall(r"\b(?:orchestrator|process)_\w+", target["expr"])
    }
    assert len(asked) > 30
    assert asked - known == set()


def test_panels_ask_only_for_series_that_the_rules_record() -> None:
    rules = (ROOT / "orchestrator" / "monitoring" / "rules.yaml").read_text(encoding="utf-8")
    recorded = set(re.findall(r"(?m)^ +- record: (\S+)$", rules))
    asked = {
        name
        for panel in PANELS
        for target in panel["targets"]
        for name in re.findall(r"\borchestrator:[\w:]+", target["expr"])
    }
    assert len(asked) > 5
    assert asked - recorded == set()


def test_the_pool_is_chosen_from_those_that_there_are() -> None:
    source, pool = BOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert pool["query"] == "label_values(orchestrator_pool_wanted_nodes, pool)"
