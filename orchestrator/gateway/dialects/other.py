"""What is kept on a node (files, batches), and whatever else is asked for under `/v1/`."""

from __future__ import annotations

from orchestrator.gateway.dialects import Dialect, Same
from orchestrator.gateway.dialects.rules import anything, never
from orchestrator.gateway.stream import StreamJudge


def _row(name: str) -> Dialect:
    """Answers pass as they are; nothing is sent twice."""
    return Dialect(
        name=name,
        judge=lambda _: StreamJudge(),
        whole=anything,
        edge=lambda _: Same(),
        json=False,
        repeats=never,
        counts=False,
    )


FILES = _row("files")
BATCHES = _row("batches")
OTHER = _row("other")
