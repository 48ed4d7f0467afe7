"""`orchestrator nodes`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output, PoolName
from orchestrator.views.api import NodesView, NodeView


def nodes(
    *,
    market: Annotated[str | None, Parameter(help="Only nodes of this market: spot or on-demand.")] = None,
    phase: Annotated[str | None, Parameter(help="Only nodes in this phase, such as ready.")] = None,
    pool: PoolName = None,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """List every node with the reason for its state.

    For example:
      orchestrator nodes
      orchestrator nodes --market spot --phase draining
      orchestrator nodes -o wide
      orchestrator nodes -o json | jq -r '.nodes[].id'
    """
    view = connection.client().status(pool=pool)
    several = len(view["pools"]) > 1
    found: list[NodeView] = [
        {**node, "pool": one["name"]} if several else node
        for one in view["pools"]
        for node in one["nodes"]
        if market in (None, node["market"]) and phase in (None, node["phase"])
    ]
    listed: NodesView = {"schema": "nodes/1", "at": view["at"], "nodes": found}
    if output == "json":
        shared.print_json(listed)
        return shared.OK
    from orchestrator.render import render

    shared.print_text(render.nodes(listed, shared.look(output)))
    return shared.OK
