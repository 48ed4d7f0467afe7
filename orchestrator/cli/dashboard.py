"""`orchestrator dashboard`."""

from __future__ import annotations

from orchestrator.cli import shared


def dashboard() -> int:
    """Print the Grafana dashboard, as JSON to be imported.

    For example:
      orchestrator dashboard > orchestrator.json
    """
    from orchestrator.monitoring import dashboard

    shared.print_text(dashboard.text())
    return shared.OK
