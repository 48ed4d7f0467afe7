"""`orchestrator status`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from orchestrator.api.client import ControlClient, Unreachable
from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output, PoolName, Seconds

if TYPE_CHECKING:
    from orchestrator.views.api import PoolState, StatusView

_CODES: Final[dict[PoolState, int]] = {
    "ok": shared.OK,
    "starting": shared.DEGRADED,
    "degraded": shared.DEGRADED,
    "below-floor": shared.BELOW_FLOOR,
    "paused": shared.PAUSED,
    "down": shared.DOWN,
    "all-on-demand": shared.ALL_ON_DEMAND,
    "empty": shared.OK,
}
_WORST_FIRST: Final = (
    shared.DOWN,
    shared.BELOW_FLOOR,
    shared.DEGRADED,
    shared.PAUSED,
    shared.ALL_ON_DEMAND,
)
_FASTEST: Final = 0.2  # s between two looks at least
_CLEAR: Final = "\x1b[H\x1b[J"  # cursor home, erase below


def status(
    *,
    pool: PoolName = None,
    output: Output = "table",
    watch: Annotated[
        Seconds | None,
        Parameter(
            name=["--watch", "-w"], help="Show it again and again, every 2 seconds if not said otherwise."
        ),
    ] = None,
    exit_code: Annotated[
        bool,
        Parameter(
            help="Exit with 4 to 8 when the pool is degraded, below its floor, paused, down or all on demand."
        ),
    ] = True,
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Show every pool: ready and wanted, the mix, the money, notices, nodes.

    For example:
      orchestrator status
      orchestrator status --watch
      orchestrator status --watch 5 -o wide
      orchestrator status --pool chat
      orchestrator status -o json | jq '.pools[0].ready'
      until orchestrator status >/dev/null; do sleep 5; done
    """
    client = connection.client()
    if watch is not None:
        with suppress(KeyboardInterrupt):
            _watch(client, pool, output, connection.flags, max(_FASTEST, watch))
        return shared.OK
    view = client.status(pool=pool)
    _show(view, output, connection.flags)
    return code_of(view) if exit_code else shared.OK


def code_of(view: StatusView) -> int:
    """The exit code that tells the state of the worst pool."""
    codes = {_CODES.get(pool["state"], shared.DEGRADED) for pool in view["pools"]}
    return next((code for code in _WORST_FIRST if code in codes), shared.OK)


def _show(view: StatusView, output: str, flags: str, *, repeated: bool = False) -> None:
    if output == "json":
        shared.print_json(view, compact=repeated)
        return
    from orchestrator.render import render

    clear = _CLEAR if repeated and shared.is_terminal() else ""
    shared.print_text(clear + render.status(view, shared.look(output, flags)))


def _watch(client: ControlClient, pool: str | None, output: str, flags: str, every: float) -> None:
    """Show the status until Ctrl-C. A daemon that restarts meanwhile is waited for."""
    while True:
        try:
            _show(client.status(pool=pool), output, flags, repeated=True)
        except Unreachable as error:
            print(f"orchestrator: {error}; trying again", file=sys.stderr)
        shared.wait(every)
