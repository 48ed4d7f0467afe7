"""Routes and providers as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.render.parts import Look, pack, table_of, text_of
from orchestrator.words import age, clean, clock_time, money, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.views.api import StatusView
    from orchestrator.views.routes import (
        BackendNowView,
        GatewaySeenView,
        ProviderNowView,
        RouteNowView,
        RoutesView,
    )

_LATE: Final = 10.0  # s without an answer of the gateway that are worth a line
_SHOWN: Final = 10  # routes out of order that a status shows one by one


def routes(view: RoutesView, look: Look) -> str:
    """Which name goes where now, why not elsewhere, and what providers cost."""
    parts: list[RenderableType] = [*_seen(view["gateway"], look)]
    if view["routes"]:
        parts.append(_route_table(view["routes"], look))
    else:
        parts.append(Text("No routes: names of models are not looked at, all requests go to the pool."))
    if view["providers"]:
        parts += [Text(), _provider_table(view["providers"])]
    return text_of(Group(*parts), look)


def of_status(view: StatusView, look: Look) -> list[RenderableType]:
    """Providers, and the routes that are not as their file would have them; nothing where there are none."""
    if "routes" not in view:
        return []
    parts: list[RenderableType] = [Text(), *_seen(view["gateway"], look)]
    wrong = [
        _out_of_order(route) for route in view["routes"] if route["stands_in"] or route["servable"] is False
    ]
    parts += [pack([Text(f"! {clean(text)}", style="red")], look.width) for text in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        parts.append(Text(f"! and {plural(len(wrong) - _SHOWN, 'more route')}: see `orchestrator routes`"))
    well = len(view["routes"]) - len(wrong)
    if well and view["gateway"]["error"] == "":
        parts.append(
            Text(f"{plural(well, 'route')} as {'it is' if well == 1 else 'they are'} meant", style="dim")
        )
    if view["providers"]:
        parts.append(_provider_table(view["providers"]))
    return parts


def for_pool(name: str, view: StatusView) -> list[str]:
    """Who answers the requests of a pool instead of it, in words."""
    found = []
    for provider in sorted({r["stands_in"] for r in view.get("routes", []) if r["stands_in"]}):
        held = [r for r in view["routes"] if r["stands_in"] == provider and _has(r, name)]
        spent = [r["spent_today_usd"] for r in held]
        if held:
            names = ", ".join(r["name"] for r in held)
            cost = "" if None in spent else f", {money(sum(filter(None, spent)))} today"
            found.append(f"its requests for {names} are answered by {provider}{cost}")
    return found


def _has(route: RouteNowView, pool: str) -> bool:
    return any((f"{each['backend']} (").startswith(f"pool {pool} (") for each in route["backends"])


def _seen(gateway: GatewaySeenView, look: Look) -> list[RenderableType]:
    """What is not known of all that follows."""
    found = []
    if gateway["error"]:
        since = "" if gateway["seen_s"] is None else f", it answered last {age(gateway['seen_s'])} ago"
        found.append(f"where requests go now is not known: {gateway['error']}{since}")
    elif gateway["seen_s"] is not None and gateway["seen_s"] > _LATE:
        found.append(f"what follows was seen {age(gateway['seen_s'])} ago")
    if gateway["spend_error"]:
        found.append(f"what providers cost is not known now: {gateway['spend_error']}")
    return [pack([Text(f"! {clean(text)}", style="red")], look.width) for text in found]


def _out_of_order(route: RouteNowView) -> str:
    why = f": {'; '.join(route['left_out'])}" if route["left_out"] else ""
    if not route["stands_in"]:
        return f"{route['name']}: nobody is known to answer{why}"
    since = "" if route["stands_in_since"] is None else f" since {clock_time(route['stands_in_since'])}"
    return f"{route['name']}: answered by {route['stands_in']}{since}{_paid(route)}{why}"


def _paid(route: RouteNowView) -> str:
    spent = route["spent_today_usd"]
    return "" if spent is None else f", {money(spent)} today"


def _route_table(found: Sequence[RouteNowView], look: Look) -> RenderableType:
    wide = ("BACKENDS",) if look.wide else ()
    table = table_of(
        "ROUTE", "GOES TO", "PAID TODAY", "WHY", *wide, right=("PAID TODAY",), wrapping=("WHY", "BACKENDS")
    )
    for route in found:
        style = "yellow" if route["stands_in"] else "red" if route["servable"] is False else ""
        table.add_row(
            clean(", ".join(route["models"])),
            Text(clean(route["goes_to"] or ("?" if route["servable"] is None else "nobody")), style=style),
            _of_cap(route["spent_today_usd"], route["cap_usd"]),
            clean("; ".join(route["left_out"])) or ("its data stays" if route["data"] == "stays" else ""),
            *(("\n".join(clean(_backend(each)) for each in route["backends"]),) if look.wide else ()),
        )
    return table


def _backend(backend: BackendNowView) -> str:
    ended = ", ".join(f"{count} {result}" for result, count in backend["requests"].items() if count)
    return " ".join(filter(None, (backend["backend"], backend["state"]))) + (f": {ended}" if ended else "")


def _provider_table(found: Sequence[ProviderNowView]) -> RenderableType:
    right = ("IN FLIGHT", "PAID TODAY", "HELD", "UNANSWERED")
    table = table_of(
        "PROVIDER", "IN FLIGHT", "PAID TODAY", "HELD", "UNANSWERED", "STATE", right=right, wrapping=("STATE",)
    )
    for provider in found:
        state = provider["state"] or "not known"
        bad = provider["failing_since"] is not None or state != "is well"
        table.add_row(
            clean(provider["name"]),
            f"{_known(provider['in_flight'])}/{provider['in_flight_limit']}",
            _of_cap(provider["spent_today_usd"], provider["cap_usd"]),
            "?" if provider["held_usd"] is None else money(provider["held_usd"]),
            _known(provider["failures"]),
            Text(clean(state), style="yellow" if bad else "green"),
        )
    return table


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)


def _of_cap(spent: float | None, cap: float | None) -> str:
    paid = "?" if spent is None else money(spent)
    return paid if cap is None else f"{paid} of {money(cap)}"
