"""`orchestrator routes`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.api.client import Unreachable
from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, Connection, Output

if TYPE_CHECKING:
    from orchestrator.config.load import Config
    from orchestrator.views.api import StatusView
    from orchestrator.views.routes import GatewaySeenView, RoutesView


def routes(
    *,
    output: Output = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Show which name goes where now, why not elsewhere, and what providers cost today.

    The daemon says so. Where it does not run, --config names the gateway, which is asked then; where that
    does not run either, the file says what would be.

    For example:
      orchestrator routes
      orchestrator routes --config pool.toml
      orchestrator routes -o wide
      orchestrator routes -o json | jq '.routes[] | select(.stands_in)'
    """
    try:
        view = _of_daemon(connection.client().status())
    except Unreachable as error:
        if connection.config is None:
            raise CommandError(
                f"{error}; with --config the gateway is asked, or the file is read", error.exit_code
            ) from error
        view = _without_daemon(shared.read_config(connection.config, role="client"))
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import routes as render

    shared.print_text(render.routes(view, shared.look(output, connection.flags)))
    return shared.OK


def _of_daemon(status: StatusView) -> RoutesView:
    unseen: GatewaySeenView = {"seen_s": None, "error": "", "spend_error": ""}
    return {
        "schema": "routes/1",
        "at": status["at"],
        "source": "daemon",
        "gateway": status.get("gateway", unseen),
        "routes": status.get("routes", []),
        "providers": status.get("providers", []),
    }


def _without_daemon(config: Config) -> RoutesView:
    """What the gateway says, or what the file says of it, with the spend file's sums."""
    from cloud.balancers.routes import read_routes
    from cloud.clock import SystemClock
    from cloud.errors import Uncertain
    from orchestrator.api import routes as shown
    from orchestrator.cli.meanings import implicit_routes
    from orchestrator.gateway.spend_file import Unusable, read_totals
    from orchestrator.wiring.gateway import routes_of
    from policies.memory import Memory

    now, document, error, days, spend_error = SystemClock().now(), None, "", None, ""
    try:
        document = asyncio.run(read_routes(config.gateway.socket))
    except Uncertain as refused:
        error = str(refused)
    try:
        days = read_totals(config.gateway.spend_file, now, days=shown.DAYS)
    except Unusable as unread:
        spend_error = str(unread)
    sight = shown.Sight(
        at=now,
        routes=(*routes_of(config), *implicit_routes(config)),
        providers=config.providers,
        document=document,
        error=error,
        seen_at=None if document is None else now,
        days=days,
        spend_error=spend_error,
    )
    return {
        "schema": "routes/1",
        "at": now,
        "source": "file" if document is None else "gateway",
        "gateway": shown.gateway_seen(sight, now),
        "routes": shown.routes_now(sight, Memory()),
        "providers": shown.providers_now(sight, Memory()),
    }
