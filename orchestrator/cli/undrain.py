"""`orchestrator undrain`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, PlainOutput


def undrain(
    node: Annotated[str, Parameter(help="The node's id or the beginning of it.")],
    /,
    *,
    reason: Annotated[str, Parameter(name=["--reason", "-m"], help="Why, for the journal.")] = "",
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Put a node back to work that an operator has drained.

    For example:
      orchestrator undrain i-0c41
      orchestrator undrain i-0c41 --reason "update done"
    """
    client = connection.client()
    known = shared.find_node(client, node)
    answer = client.undrain(known, reason=reason)
    shared.report_done(answer, f"{known} goes back to work.", f"orchestrator node {known}", output)
    return shared.OK
