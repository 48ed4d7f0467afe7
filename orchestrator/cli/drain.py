"""`orchestrator drain`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Final
from urllib.parse import quote

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Duration, PlainOutput
from orchestrator.client import ClientError, ControlClient, Unreachable

_EVERY: Final = 1.0  # s between two looks while waiting
_OUT_OF_SERVICE: Final = ("terminating", "gone", "stopped")


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
    body: dict[str, object] = {"reason": reason}
    if deadline is not None:
        body["deadline_s"] = deadline
    answer = client.post(f"/v1/nodes/{quote(known, safe='')}/drain", body)
    shared.report_done(answer, f"{known} is being drained.", f"orchestrator node {known}", output)
    if wait:
        with suppress(KeyboardInterrupt):
            _wait_until_out(client, known)
    return shared.OK


def _wait_until_out(client: ControlClient, node: str) -> None:
    while True:
        try:
            view = client.node(node)["node"]
        except Unreachable:
            view = None
        except ClientError as error:
            print(f"orchestrator: {error}", file=sys.stderr)
            return
        else:
            if view is None or view["phase"] in _OUT_OF_SERVICE:
                print(f"{node} is out of service.", file=sys.stderr)
                return
        shared.wait(_EVERY)
