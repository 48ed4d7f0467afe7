"""`orchestrator explain`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, PlainOutput, PoolName


def explain(
    *subject: Annotated[
        str, Parameter(help="A node, a route, a policy, a placement or a zone. Without one, the pool.")
    ],
    pool: PoolName = None,
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Explain in sentences why something is as it is.

    For example:
      orchestrator explain
      orchestrator explain i-0c41
      orchestrator explain route assistant
      orchestrator explain capacity
      orchestrator explain us-east-1b
    """
    view = connection.client().explain(" ".join(subject) or "pool", pool=pool)
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import render

    shared.print_text(render.explain(view, shared.look(output)))
    return shared.OK
