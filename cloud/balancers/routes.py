"""Where the gateway sends requests now: `GET /v1/routes` on its control socket.

The answer is a `gateway-routes/1` document, as `orchestrator.gateway.control` describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloud.balancers.exchange import Exchange, json_of, read_as_ours
from cloud.errors import Uncertain
from policies.routing import Backend, Kind, Route

SCHEMA: Final = "gateway-routes/1"
_OK: Final = 200

MAX_BYTES: Final = 8 * 1024 * 1024
"""A document of more than this is none."""


@dataclass(frozen=True, slots=True)
class BackendRow:
    """A backend of a route: its trouble in words, whether it is known to answer, and how requests ended."""

    state: str
    sound: bool
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route as the gateway serves it. `goes_to` and `left_out` name backends as `str(Backend)` does;
    `backends` are in the order of the route.
    """

    route: Route
    goes_to: str | None
    left_out: tuple[str, ...]
    servable: bool
    backends: tuple[BackendRow, ...]


@dataclass(frozen=True, slots=True)
class ProviderRow:
    """A provider: its trouble in words, and how many requests it holds. `over_cap`: how many were not sent
    there because of a cap since the gateway's process began, by route.
    """

    state: str
    in_flight: int
    over_cap: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Document:
    """Routes in their order and providers, by name."""

    routes: Mapping[str, RouteRow]
    providers: Mapping[str, ProviderRow]


def parse(body: Any) -> Document:
    """A document from its JSON. Raises ValueError for what is none."""
    try:
        if body["schema"] != SCHEMA:
            raise ValueError(f"the schema is {body['schema']!r:.60}, not {SCHEMA}")
        return Document(
            routes={str(row["name"]): _route(row) for row in body["routes"]},
            providers={str(row["name"]): _provider(row) for row in body["providers"]},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is no {SCHEMA} document: {error!r:.200}") from None


def _provider(row: Mapping[str, Any]) -> ProviderRow:
    over = {str(route): int(count) for route, count in row["over_cap"].items()}
    return ProviderRow(str(row["state"]), int(row["in_flight"]), over)


def _route(row: Mapping[str, Any]) -> RouteRow:
    backends = tuple(
        Backend(
            kind=Kind(each["kind"]),
            name=str(each["name"]),
            model=str(each["model"]),
            weight=None if each["weight"] is None else int(each["weight"]),
        )
        for each in row["backends"]
    )
    return RouteRow(
        route=Route(models=tuple(map(str, row["models"])), backends=backends, stays=row["data"] == "stays"),
        goes_to=None if row["goes_to"] is None else str(row["goes_to"]),
        left_out=tuple(map(str, row["left_out"])),
        servable=bool(row["servable"]),
        backends=tuple(
            BackendRow(
                str(each["state"]),
                bool(each["sound"]),
                {str(result): int(count) for result, count in each["requests"].items()},
            )
            for each in row["backends"]
        ),
    )


async def read_routes(socket: Path, *, timeout: float = 2.0) -> Document:
    """The document of the gateway at a control socket. Raises Uncertain, saying why there is none.

    Each question is a connection of its own: one that hangs must not be found hanging by the next.
    """
    exchange = Exchange(
        f"the gateway at {socket}", "http://gateway", socket=socket, timeout=timeout, warm=False
    )
    status, data = await exchange.ask("GET", "/v1/routes", most=MAX_BYTES)
    if status != _OK:
        raise Uncertain(f"{exchange.peer} answered {status}: it may be of an older version")
    body = json_of(exchange.peer, data)
    with read_as_ours(exchange.peer):
        return parse(body)
