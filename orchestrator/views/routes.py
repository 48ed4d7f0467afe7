"""The JSON of `orchestrator routes` and of a status' routes and providers, as types; see `views.api`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict


class BackendNowView(TypedDict):
    """One backend of a route now."""

    backend: Annotated[str, "pool chat, pool chat (adapter), provider claude (model)"]
    state: Annotated[str | None, "in words that follow its name, as `is well`; null when not known"]
    requests: Annotated[
        dict[str, int],
        "since the gateway's process began, by how they ended there: answered, turned (the answer is an "
        "error), down, saturated, waited, failed (another backend was asked next)",
    ]


class MoneyView(TypedDict):
    """What providers cost on this UTC day."""

    requests_today: Annotated[int | None, "that providers were paid for this UTC day; null when not known"]
    spent_today_usd: Annotated[float | None, "at providers, this UTC day; null when not known"]
    held_usd: Annotated[float | None, "held for requests that are not settled; null when not known"]


class RouteNowView(MoneyView):
    """One route: where its requests go at this moment, and why not elsewhere."""

    name: str
    models: Annotated[list[str], "the names that clients ask for; the first is listed"]
    data: Annotated[str, "stays: no provider ever gets a request; may-leave"]
    goes_to: Annotated[str | None, "the backend that a request gets now; null for none, or when not known"]
    left_out: Annotated[list[str], "the backends before it, each with why it is left out"]
    servable: Annotated[bool | None, "whether anybody is known to answer; null when not known"]
    stands_in: Annotated[str | None, "the provider that answers now in the place of those before it"]
    stands_in_since: Annotated[float | None, "since when, once that was reported; null otherwise"]
    backends: Annotated[list[BackendNowView], "in order"]
    cap_usd: Annotated[float | None, "the route's own cap on a UTC day; null for none"]


class DayView(TypedDict):
    """What one provider cost on one UTC day."""

    day: str
    requests: int
    usd: float


class ProviderNowView(MoneyView):
    """One provider now."""

    name: str
    kind: str
    state: Annotated[str | None, "in words that follow its name, as `is well`; null when not known"]
    failing_since: Annotated[float | None, "once that was reported; null otherwise"]
    in_flight: Annotated[int | None, "requests that it holds; null when not known"]
    in_flight_limit: int
    failures: Annotated[
        int | None, "requests since the gateway's process began that another backend had to answer"
    ]
    cap_usd: Annotated[float | None, "the cap on a UTC day; null for none"]
    days: Annotated[list[DayView], "the last days, newest first, those without a request left out"]


class GatewaySeenView(TypedDict):
    """How the routes and providers were seen."""

    seen_s: Annotated[float | None, "age of the gateway's answer; null: it has not answered"]
    error: Annotated[str, "why the gateway cannot be asked; empty while it answers"]
    spend_error: Annotated[str, "why it is not known what was spent; empty when it is"]


class RoutesView(TypedDict):
    """`orchestrator routes -o json`."""

    schema: Literal["routes/1"]
    at: float
    source: Annotated[Literal["daemon", "gateway", "file"], "who said so; a file knows no state"]
    gateway: GatewaySeenView
    routes: list[RouteNowView]
    providers: list[ProviderNowView]
