"""`orchestrator pause`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Duration, PlainOutput, PoolName


def pause(
    *,
    reason: Annotated[str, Parameter(name=["--reason", "-m"], help="Why, for the journal.")] = "",
    duration: Annotated[
        Duration | None, Parameter(name="--for", help="Resume by itself after this time, such as 2h.")
    ] = None,
    pool: PoolName = None,
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Keep watching, but launch and end nothing until `resume`.

    With several pools one is paused, which --pool names. Notices still drain their nodes, and the target set
    stays true.

    For example:
      orchestrator pause --for 2h --reason "network maintenance"
      orchestrator resume
    """
    body: dict[str, object] = {"reason": reason, "by": shared.user_name()}
    if duration is not None:
        body["for_s"] = duration
    answer = connection.client().pause(pool=pool, **body)
    again = "orchestrator resume" if pool is None else f"orchestrator resume --pool {pool}"
    shared.report_done(answer, "Paused.", again, output)
    return shared.OK
