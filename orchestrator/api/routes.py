"""Routes and providers as status pages show them, and as `policies.fallback` looks at them.

What is known comes from three places: the configuration, the gateway's own document (where requests go now,
`gateway-routes/1`), and the spend file (money, `orchestrator.gateway.spend_file`). Each may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cloud.balancers.routes import Document, ProviderRow, RouteRow
from orchestrator.config.tables.provider import ProviderConfig
from orchestrator.gateway.spend_file import Line, Totals
from orchestrator.views import routes as views
from policies.fallback import CapLook, Look, ProviderLook, RouteLook, Spent
from policies.memory import Memory
from policies.routing import Kind, Route
from policies.spend import PICO, cents, day_of, usd

DAYS: Final = 7
"""Days of which the sums are shown."""

_WELL: Final = "is well"
_LEFT: Final = ("down", "failed", "saturated", "waited")
"""Results after which another backend was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is known at one moment."""

    at: float
    routes: tuple[Route, ...]  # as written in the file
    providers: Mapping[str, ProviderConfig]
    document: Document | None  # the gateway's; None: it does not answer, `error` says why
    error: str
    seen_at: float | None  # when it answered last
    days: Sequence[Totals] | None  # sums as read last, the newest day first; None: not read yet
    spend_error: str  # why they cannot be read now

    @property
    def rows(self) -> Mapping[str, RouteRow]:
        """The document's routes by name."""
        return {} if self.document is None else self.document.routes

    @property
    def today(self) -> Totals | None:
        """The sums of today, None where they are not known."""
        return self.days[0] if self.days and self.days[0].day == day_of(self.at) else None


class Outside(Protocol):
    """Who looks; see `orchestrator.daemon.outside.Outside`."""

    @property
    def sight(self) -> Sight | None:
        """The newest look, None where names of models are not looked at."""
        ...

    @property
    def memory(self) -> Memory:
        """What was reported."""
        ...


def look(sight: Sight) -> Look:
    """What is seen, for `policies.fallback`."""
    rows = sight.rows
    return Look(
        at=sight.at,
        day=day_of(sight.at),
        heard=sight.document is not None,
        routes=tuple(_route_look(route, rows[route.name]) for route in sight.routes if route.name in rows),
        providers=tuple(_provider_looks(rows.values())),
        caps=tuple(_caps(sight)),
        spent=tuple(
            Spent(day=t.day, provider=n.provider, route=n.route, requests=n.requests, amount=n.amount)
            for t in sight.days or ()
            for n in t.lines
        ),
    )


def gateway_seen(sight: Sight, now: float) -> views.GatewaySeenView:
    """How the rest was seen."""
    age = None if sight.seen_at is None else max(0.0, now - sight.seen_at)
    return {"seen_s": age, "error": sight.error, "spend_error": sight.spend_error}


def routes_now(sight: Sight, memory: Memory) -> list[views.RouteNowView]:
    """Every route, in the order of the gateway where that answers: those of pools' own models are last."""
    rows, written = sight.rows, {route.name: route for route in sight.routes}
    if not rows:
        return [_route_now(route, None, sight, memory) for route in sight.routes]
    return [_route_now(written.get(name, row.route), row, sight, memory) for name, row in rows.items()]


def providers_now(sight: Sight, memory: Memory) -> list[views.ProviderNowView]:
    """Every provider of the file."""
    reported = {} if sight.document is None else sight.document.providers
    return [_provider_now(name, reported.get(name), sight, memory) for name in sight.providers]


def sentences(sight: Sight, memory: Memory, name: str) -> tuple[str, ...]:
    """A route in sentences, by any of the names that clients ask for; empty for one that is not known."""
    found = next((r for r in routes_now(sight, memory) if name in r["models"]), None)
    return () if found is None else tuple(_told(found, sight.error))


def _told(route: views.RouteNowView, error: str) -> Iterator[str]:
    name, *aliases = route["models"]
    order = ", then ".join(each["backend"] for each in route["backends"])
    also = f" (also {', '.join(aliases)})" if aliases else ""
    yield f"{name}{also}: {order}."
    if error:
        yield f"Where its requests go now is not known: {error}."
    else:
        yield f"Requests go to {route['goes_to'] or 'nobody'} now."
        yield from (f"{each}.".replace("pool ", "Pool ", 1) for each in route["left_out"])
    if route["data"] == "stays":
        yield "Its data stays: no provider ever gets a request of it."
    elif route["spent_today_usd"] is not None and route["requests_today"]:
        yield (
            f"{route['requests_today']} requests cost {cents(round(route['spent_today_usd'] * PICO))} at "
            "providers today (UTC)."
        )


def _route_look(route: Route, row: RouteRow) -> RouteLook:
    return RouteLook(
        name=route.name,
        stand_ins=route.stand_ins,
        provider=_stands_in(route, row),
        why="; ".join(row.left_out),
    )


def _stands_in(route: Route, row: RouteRow) -> str:
    """The provider to which requests go now in the place of others, empty for none."""
    goes_to = next((backend for backend in row.route.backends if str(backend) == row.goes_to), None)
    found = goes_to is not None and goes_to.kind is Kind.PROVIDER and goes_to.name in route.stand_ins
    return goes_to.name if goes_to is not None and found else ""


def _provider_looks(rows: Iterable[RouteRow]) -> Iterator[ProviderLook]:
    seen: set[str] = set()
    for row in rows:
        for backend, reported in zip(row.route.backends, row.backends, strict=True):
            if backend.kind is Kind.PROVIDER and backend.name not in seen:
                seen.add(backend.name)
                why = "failed, and has not answered since" if reported.state == _WELL else reported.state
                yield ProviderLook(name=backend.name, sound=reported.sound, why=why)


def _caps(sight: Sight) -> Iterator[CapLook]:
    today = sight.today
    if today is None:
        return
    caps = {("provider", name): _cap(provider) for name, provider in sight.providers.items()}
    caps |= {("route", route.name): route.usd_per_day_pico for route in sight.routes}
    for (kind, name), cap in caps.items():
        if cap:
            used = today.amount(**{kind: name}) + today.held(**{kind: name})
            refused = _refused(sight.document, kind, name)
            yield CapLook(about=f"{kind} {name}", used=used, cap=cap, refused=refused)


def _refused(document: Document | None, kind: str, name: str) -> int:
    """Requests that a cap kept from a provider, or from the providers of a route."""
    if document is None:
        return 0
    return sum(
        count
        for provider, row in document.providers.items()
        for route, count in row.over_cap.items()
        if name == (provider if kind == "provider" else route)
    )


def _cap(provider: ProviderConfig) -> int | None:
    return None if provider.usd_per_day is None else usd(str(provider.usd_per_day))


def _route_now(route: Route, row: RouteRow | None, sight: Sight, memory: Memory) -> views.RouteNowView:
    record, cap = memory.fallbacks.get(route.name), route.usd_per_day_pico
    backends: list[views.BackendNowView] = [
        {"backend": str(backend), "state": None, "requests": {}} for backend in route.backends
    ]
    if row is not None:
        backends = [
            {"backend": str(backend), "state": reported.state, "requests": dict(reported.requests)}
            for backend, reported in zip(row.route.backends, row.backends, strict=True)
        ]
    return {
        "name": route.name,
        "models": list(route.models),
        "data": "stays" if route.stays else "may-leave",
        "goes_to": None if row is None else row.goes_to,
        "left_out": [] if row is None else list(row.left_out),
        "servable": None if row is None else row.servable,
        "stands_in": (_stands_in(route, row) or None) if row is not None else None,
        "stands_in_since": None if record is None else record.since,
        "backends": backends,
        **_money(sight.today, route=route.name),
        "cap_usd": None if cap is None else cap / PICO,
    }


def _provider_now(name: str, row: ProviderRow | None, sight: Sight, memory: Memory) -> views.ProviderNowView:
    provider = sight.providers[name]
    cap = _cap(provider)
    return {
        "name": name,
        "kind": provider.kind,
        "state": None if row is None else row.state,
        "failing_since": memory.failing.get(name),
        "in_flight": None if row is None else row.in_flight,
        "in_flight_limit": provider.in_flight,
        "failures": None if sight.document is None else _failures(name, sight.rows.values()),
        **_money(sight.today, provider=name),
        "cap_usd": None if cap is None else cap / PICO,
        "days": [
            {"day": day.day, "requests": requests, "usd": day.amount(provider=name) / PICO}
            for day in sight.days or ()
            if (requests := sum(line.requests for line in day.lines if line.provider == name))
        ],
    }


def _failures(name: str, rows: Iterable[RouteRow]) -> int:
    return sum(
        reported.requests.get(result, 0)
        for row in rows
        for backend, reported in zip(row.route.backends, row.backends, strict=True)
        if backend.kind is Kind.PROVIDER and backend.name == name
        for result in _LEFT
    )


def _money(today: Totals | None, **of: str) -> views.MoneyView:
    """Requests, dollars spent and dollars held of one provider or route."""
    if today is None:
        return {"requests_today": None, "spent_today_usd": None, "held_usd": None}
    lines: list[Line] = [n for n in today.lines if all(getattr(n, key) == name for key, name in of.items())]
    return {
        "requests_today": sum(line.requests for line in lines),
        "spent_today_usd": today.amount(**of) / PICO,
        "held_usd": today.held(**of) / PICO,
    }
