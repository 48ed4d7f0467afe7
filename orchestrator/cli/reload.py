"""`orchestrator reload`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import Connection, Output

if TYPE_CHECKING:
    from orchestrator.views.api import ReloadView

_EFFECTS: Final = {"now": "", "gateway": "  (the gateway is replaced)", "restart": "  (refused)"}


def reload(
    *,
    wait: Annotated[
        bool, Parameter(negative="", help="Return once the daemon has turned under the new configuration.")
    ] = False,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Only say what would change and what the daemon would do.")
    ] = False,
    force: Annotated[
        bool,
        Parameter(
            negative="",
            help="Also where a pool, or its price, more than doubles or halves, and where a pool ends: its "
            "nodes drain and are ended.",
        ),
    ] = False,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Have the daemon read its configuration file again.

    Pools come, change and go by it, and the gateway is replaced where what it reads has changed.
    It is taken up whole or not at all: a file with a fault, or with a change that needs a restart, leaves the
    one before in force, and the exit code is 1. `kill -HUP` does the same without an answer.

    For example:
      orchestrator reload --dry-run
      orchestrator reload --wait
      orchestrator reload --wait -o json | jq '.changes'
    """
    body = {"wait": wait, "dry_run": dry_run, "force": force}
    view: ReloadView = connection.client().post("/v1/reload", body)
    if output == "json":
        shared.print_json(view)
    else:
        _show(view, output)
    return shared.ERROR if view["outcome"] == "rejected" else shared.OK


def _show(view: ReloadView, output: str) -> None:
    from orchestrator.config.errors import Problem
    from orchestrator.render import render

    rejected = view["outcome"] == "rejected"
    for warning in view["warnings"]:
        print(f"warning: {Problem(**warning)}", file=sys.stderr)
    for problem in view["problems"]:
        print(Problem(**problem), file=sys.stderr)
    print(view["text"], file=sys.stderr if rejected else sys.stdout, flush=True)
    for change in view["changes"]:
        line, effect = change["line"], _EFFECTS[change["effect"]]
        print(f"  line {line}: {change['key']}: {change['before']} -> {change['after']}{effect}")
    if view["size"] is not None and not rejected:
        print(f"  size: {view['size']}")
    plans = view.get("plans") or ([] if view["plan"] is None else [view["plan"]])
    if plans and view["changes"]:
        shared.print_text(render.plan({"schema": "plan/1", "pools": plans}, shared.look(output)))
