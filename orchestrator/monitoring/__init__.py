"""What ships for Prometheus, Alertmanager and Grafana: alert rules, example configurations, a dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Final

RULES: Final = "rules.yaml"
FILES: Final = (RULES, "prometheus.yaml", "alertmanager.yaml")
RUNBOOKS: Final = "docs/runbooks/"
"""Where the rules say that runbooks are: a path in the project's source."""


def read(name: str, *, runbooks: str = RUNBOOKS) -> str:
    """The text of one of FILES; `runbooks` is where its alerts say that the pages are."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return text.replace(f"runbook_url: {RUNBOOKS}", f"runbook_url: {runbooks}")
