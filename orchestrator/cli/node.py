"""`orchestrator node`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output


def node(
    node: Annotated[str, Parameter(help="The node's id or the beginning of it.")],
    /,
    *,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Tell the story of one node: what it is, why, and what happened to it.

    The beginning of an id is enough.

    For example:
      orchestrator node i-0c41
      orchestrator node i-0c41 -o json | jq -r '.events[].text'
    """
    client = connection.client()
    view = client.node(shared.find_node(client, node))
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import render

    shared.print_text(render.story(view, shared.look(output)))
    return shared.OK
