"""`orchestrator drain`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import following, shared
from orchestrator.cli.shared import Connection, Duration, PlainOutput


def drain(
    node: Annotated[str, Parameter(help="The node's id or the beginning of it.")],
    /,
    *,
    reason: Annotated[str, Parameter(name=["--reason", "-m"], help="Why, for the journal.")] = "",
    deadline: Annotated[
        Duration | None, Parameter(help="How long requests in flight may take, such as 2m.")
    ] = None,
    wait: Annotated[
        bool,
        Parameter(negative="", help="Wait until the node is out of service; Ctrl-C stops waiting."),
    ] = False,
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Take a node out of service; its requests finish, another node takes over.

    For example:
      orchestrator drain i-0c41 --reason "kernel update"
      orchestrator drain i-0c41 --deadline 10m --wait
      orchestrator undrain i-0c41
    """
    client = connection.client()
    known = shared.find_node(client, node)
    answer = client.drain(known, reason=reason, deadline_s=deadline)
    shared.report_done(answer, f"{known} is being drained.", f"orchestrator node {known}", output)
    if wait:
        with suppress(KeyboardInterrupt):
            following.until_out(client, known)
    return shared.OK
