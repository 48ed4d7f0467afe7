"""`orchestrator history`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output, PoolName


def history(
    *,
    limit: Annotated[
        int,
        Parameter(
            name=["--limit", "-n"], help="The newest so many.", validator=validators.Number(gte=1, lte=256)
        ),
    ] = 20,
    node: Annotated[
        str | None, Parameter(help="Only the swap and starts of this node; the beginning is enough.")
    ] = None,
    starts: Annotated[
        bool, Parameter(negative="", help="The starts of nodes in parts, instead of the swaps.")
    ] = False,
    pool: PoolName = None,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Show past swaps with the seconds of each stage: detached, drained, replaced, gone; and past starts.

    Times count from the arrival of the notice, or from the drain's beginning where there was none. A start
    counts from the launch until requests are routed to the node; with --starts it is shown in its parts.

    For example:
      orchestrator history
      orchestrator history --starts
      orchestrator history -n 100 -o wide
      orchestrator history -o json | jq '.stages[] | select(.stage == "replaced")'

    The newest 128 swaps and 64 starts are remembered; `orchestrator events` goes further back.
    """
    client = connection.client()
    known = None if node is None else shared.find_node(client, node)
    view = client.history(limit=limit, node=known, pool=pool)
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import render
    from orchestrator.render import starts as render_starts

    look = shared.look(output)
    shared.print_text(render_starts.starts(view, look) if starts else render.history(view, look))
    return shared.OK
