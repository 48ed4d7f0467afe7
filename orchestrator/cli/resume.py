"""`orchestrator resume`."""

from __future__ import annotations

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, PlainOutput, PoolName


def resume(
    *,
    pool: PoolName = None,
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Let a paused daemon act again, and try at once what it had stopped trying.

    Ends the pause of every market whose launches were not allowed or whose machines never started, and lets a
    pool launch again that had stopped because it did not start once.

    For example:
      orchestrator resume
      orchestrator resume --pool chat
    """
    answer = connection.client().resume(by=shared.user_name(), pool=pool)
    shared.report_done(answer, "Resumed.", "orchestrator status", output)
    return shared.OK
