"""`orchestrator events`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Final

from cyclopts import Parameter, validators

from orchestrator.api.client import ControlClient, Unreachable
from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output, PoolName
from orchestrator.views.api import EventView

_PATIENCE: Final = 20.0  # s that one request waits for something new
_BREATH: Final = 0.1  # s after an empty answer, should a daemon not wait itself
_RETRY: Final = 1.0  # s before a daemon that went away is asked again


def events(
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="Keep waiting for new events.")
    ] = False,
    node: Annotated[str | None, Parameter(help="Only events of this node; the beginning is enough.")] = None,
    limit: Annotated[
        int,
        Parameter(
            name=["--limit", "-n"], help="The newest so many.", validator=validators.Number(gte=1, lte=10000)
        ),
    ] = 50,
    after: Annotated[int | None, Parameter(help="Only events after this number.")] = None,
    pool: PoolName = None,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Show what happened, oldest first.

    For example:
      orchestrator events
      orchestrator events -f
      orchestrator events --node i-0c41 --limit 200
      orchestrator events -f -o json | jq -r .kind

    With -f and -o json every event is one line.
    """
    client = connection.client()
    known = None if node is None else shared.find_node(client, node)
    view = client.events(after=after, limit=limit, node=known, pool=pool)
    if not follow:
        if output == "json":
            shared.print_json(view)
        else:
            from orchestrator.render import render

            shared.print_text(render.events(view["events"], shared.look(output)))
        return shared.OK
    with suppress(KeyboardInterrupt):
        _lines(view["events"], output)
        _follow(client, known, pool, view["last"], output)
    return shared.OK


def _follow(client: ControlClient, node: str | None, pool: str | None, last: int, output: str) -> None:
    """Print new events until Ctrl-C. A daemon that restarts meanwhile is waited for."""
    lost = False
    while True:
        try:
            view = client.events(after=last, node=node, pool=pool, wait=_PATIENCE)
        except Unreachable as error:
            if not lost:
                print(f"orchestrator: {error}; waiting for it", file=sys.stderr)
            lost = True
            shared.wait(_RETRY)
            continue
        lost = False
        last = view["last"]
        _lines(view["events"], output)
        if not view["events"]:
            shared.wait(_BREATH)


def _lines(items: Sequence[EventView], output: str) -> None:
    if output == "json":
        for item in items:
            shared.print_json(item, compact=True)
        return
    from orchestrator.render import render

    look = shared.look(output)
    for item in items:
        shared.print_text(render.event_line(item, look))
