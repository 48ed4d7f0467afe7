"""`orchestrator plan`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output, PoolName


def plan(
    *,
    detailed_exit_code: Annotated[
        bool, Parameter(negative="", help="Exit with 10 when there is something to do.")
    ] = False,
    pool: PoolName = None,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Show what the daemon would do now, what it holds back, and why.

    Nothing is changed.

    For example:
      orchestrator plan
      orchestrator plan -o wide
      orchestrator plan -o json | jq '.pools[].actions'
    """
    view = connection.client().plan(pool=pool)
    if output == "json":
        shared.print_json(view)
    else:
        from orchestrator.render import render

        shared.print_text(render.plan(view, shared.look(output)))
    busy = any(pool["actions"] for pool in view["pools"])
    return shared.CHANGES if detailed_exit_code and busy else shared.OK
