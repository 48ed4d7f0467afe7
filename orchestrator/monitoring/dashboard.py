"""The Grafana dashboard: rows of panels, from what clients and money feel down to the daemon itself."""

from __future__ import annotations

import json
from typing import Any, Final

from orchestrator.monitoring.panel import Panel
from orchestrator.monitoring.panels import ROWS as ROWS

WIDTH: Final = 24
_HEIGHT: Final = 7
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_POOLS: Final = "label_values(orchestrator_pool_wanted_nodes, pool)"
_CHOSEN: Final = 'pool=~"$pool"'
_SCHEMA_VERSION: Final = 39  # of Grafana 10.4; later ones bring it up to date themselves


def build() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        panels.append(
            {
                "type": "row",
                "id": len(panels) + 1,
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": place,
            }
        )
        y += 1
        across = 3 if len(row) % 3 == 0 else 4
        width = WIDTH // across
        for number, panel in enumerate(row):
            down, right = divmod(number, across)
            place = {"h": _HEIGHT, "w": width, "x": right * width, "y": y + down * _HEIGHT}
            panels.append(_panel(panel, len(panels) + 1, place))
        y += -(-len(row) // across) * _HEIGHT
    return {
        "uid": "orchestrator",
        "title": "Orchestrator",
        "description": "A pool of inference nodes on spot: market, money, notices, gateway, engines, daemon.",
        "tags": ["orchestrator"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": panels,
    }


def text() -> str:
    """The dashboard as a JSON file."""
    return json.dumps(build(), indent=2) + "\n"


def _variables() -> list[dict[str, Any]]:
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
        },
        {
            "name": "pool",
            "label": "Pool",
            "type": "query",
            "datasource": _SOURCE,
            "definition": _POOLS,
            "query": _POOLS,  # as text: every version of Grafana turns that into what its editor wants
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
            "hide": 0,
        },
    ]


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    style: dict[str, Any] = {}
    if not panel.stat:
        stacking = {"mode": "normal" if panel.stacked else "none"}
        style = {
            "custom": {"fillOpacity": 20 if panel.stacked else 5, "stacking": stacking, "showPoints": "never"}
        }
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **style}, "overrides": []},
        "options": {"textMode": "name" if panel.title == "State" else "auto"} if panel.stat else {},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": expression.replace("POOL", _CHOSEN),
                "legendFormat": legend,
            }
            for i, (expression, legend) in enumerate(panel.queries)
        ],
    }
