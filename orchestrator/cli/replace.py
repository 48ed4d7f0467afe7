"""`orchestrator replace`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import following, shared
from orchestrator.cli.shared import Connection, Duration, PlainOutput


def replace(
    node: Annotated[str, Parameter(help="The node's id or the beginning of it.")],
    /,
    *,
    reason: Annotated[str, Parameter(name=["--reason", "-m"], help="Why, for the journal.")] = "",
    deadline: Annotated[
        Duration | None, Parameter(help="How long requests in flight may take, such as 2m.")
    ] = None,
    wait: Annotated[
        bool,
        Parameter(help="Wait until the node is out and the wanted nodes are ready; Ctrl-C stops waiting."),
    ] = True,
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Put a new node in the place of one, the new one first, and wait for it.

    It is a drain, seen through to the end: the node goes on serving until its replacement is ready, then
    its requests finish, then it ends. `orchestrator undrain` takes it back until then.

    For example:
      orchestrator replace i-0c41 --reason "slow disk"
      orchestrator replace i-0c41 --no-wait
    """
    client = connection.client()
    known = shared.find_node(client, node)
    pool = shared.pool_of(client, known)
    answer = client.drain(known, reason=reason or "replaced by an operator", deadline_s=deadline)
    shared.report_done(answer, f"{known} is being replaced.", f"orchestrator history --node {known}", output)
    if wait:
        with suppress(KeyboardInterrupt):
            if not following.until_out(client, known):
                return shared.ERROR
            following.until_whole(client, pool)
    return shared.OK
