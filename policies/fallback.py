"""When it is news that providers answer, fail, or come to their caps.

What it decides: from what is seen of the gateway's routes and providers now, and what was reported before,
which of these to report: a provider stands in on a route, or the route is back; a provider fails, or is back;
a cap is near, or requests are refused because of it. What a fallback cost is worked out from the spend
file's sums, which every process adds to, so a restart of daemon or gateway changes nothing of it.

Why: a bill without a warning is the worst surprise of a paid fallback, and the journal is read by people.
A backend that comes and goes must not fill it: a provider has to stand in at every look of 10 s to be one
that does, and at none of 60 s to be one that did. So a single request that found its pool busy is no event;
it is still counted and paid for. A provider that failed is back when one of its answers was whole.

Never: a thing is reported twice, also over a restart; a fallback ends, or a provider is back, because the
gateway could not be asked; a cap is reported more than twice on its day, once as near and once as reached.

Example:
    >>> from policies.records import Memory
    >>> down = RouteLook(name="chat", stand_ins=frozenset({"claude"}), provider="claude", why="chat is down")
    >>> watch, memory = Watch(), Memory()
    >>> for at in (100.0, 105.0, 110.0):
    ...     watch, found = news(Look(at=at, day="2026-11-30", routes=(down,)), watch, memory)
    ...     print(at, [type(event).__name__ for event in found])
    100.0 []
    105.0 []
    110.0 ['FallbackBegan']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field

from policies.events import CapNear, CapReached, FallbackBegan, FallbackEnded, ProviderBack, ProviderFailing
from policies.memory_builder import MemoryBuilder
from policies.records import CapRecord, FallbackRecord, Memory
from policies.value import replace, value

BEGAN_AFTER = 10.0
"""Seconds for which a provider stands in at every look before that is reported."""

ENDED_AFTER = 60.0
"""Seconds without one after which the fallback is over."""

FAILING_AFTER = 10.0
"""Seconds for which a provider is not sound at any look before that is reported."""

NEAR = 0.8
"""The share of a cap that is reported as near."""

News = FallbackBegan | FallbackEnded | ProviderFailing | ProviderBack | CapNear | CapReached


@value
class Spent:
    """What was paid for on one UTC day at one provider for one route."""

    day: str
    provider: str
    route: str
    requests: int
    amount: int  # picodollars


@value
class RouteLook:
    """A route now. `stand_ins`: the providers that get requests only when those before them are in trouble;
    `provider`: the one of them that a request would go to, empty for none; `why`: what is wrong before it.
    """

    name: str
    stand_ins: frozenset[str] = frozenset()
    provider: str = ""
    why: str = ""


@value
class ProviderLook:
    """A provider now: whether it is known to answer, and why not."""

    name: str
    sound: bool = True
    why: str = ""


@value
class CapLook:
    """A cap on a day: what is used of it, spent or held, in picodollars. `refused` counts the requests that
    a cap kept from being sent there, since some moment that a restart of the gateway sets anew.
    """

    about: str
    used: int
    cap: int
    refused: int = 0


@value
class Look:
    """What is seen at one moment."""

    at: float
    day: str
    heard: bool = True  # the gateway answered; without it there are neither routes nor providers
    routes: tuple[RouteLook, ...] = ()
    providers: tuple[ProviderLook, ...] = ()
    caps: tuple[CapLook, ...] = ()
    spent: tuple[Spent, ...] = ()  # of the day, and of all days since the oldest fallback that is not over


@value
class Sum:
    """What stand-ins were paid for on a route: requests, picodollars, of `day` alone."""

    day: str
    requests: int = 0
    amount: int = 0


@value
class Watch:
    """What is remembered from look to look, and not over a restart."""

    sums: Mapping[str, Sum] = field(default_factory=dict)  # by route, at the last look
    on: Mapping[str, tuple[float, Sum]] = field(
        default_factory=dict
    )  # since when one stands in, and the sum before
    off: Mapping[str, float] = field(default_factory=dict)  # since when none does on a route with a fallback
    unsound: Mapping[str, float] = field(default_factory=dict)  # since when a provider is not sound
    refused: Mapping[str, int] = field(default_factory=dict)  # by cap, at the last look


def news(look: Look, watch: Watch, memory: Memory) -> tuple[Watch, tuple[News, ...]]:
    """What is to be reported of a look, and what to remember for the next one."""
    found: list[News] = [*_caps(look, watch, memory)]
    watch = replace(watch, refused={each.about: each.refused for each in look.caps})
    if not look.heard:
        return watch, tuple(found)
    watch = _watched(look, watch, memory)
    return watch, (*_routes(look, watch, memory), *_providers(look, watch, memory), *found)


def _watched(look: Look, watch: Watch, memory: Memory) -> Watch:
    """The watch after a look at which the gateway answered."""
    sums = {route.name: _sum(look.spent, route, look.day) for route in look.routes}
    on: dict[str, tuple[float, Sum]] = {}
    off: dict[str, float] = {}
    for route in look.routes:
        before = watch.sums.get(route.name, sums[route.name])
        paid = _since(look.spent, route, before)
        if route.provider or paid.requests:
            on[route.name] = watch.on.get(route.name, (look.at, before))
        elif route.name in memory.fallbacks:
            off[route.name] = watch.off.get(route.name, look.at)
    unsound = {p.name: watch.unsound.get(p.name, look.at) for p in look.providers if not p.sound}
    return replace(watch, sums=sums, on=on, off=off, unsound=unsound)


def _routes(look: Look, watch: Watch, memory: Memory) -> Iterator[News]:
    known = {route.name: route for route in look.routes}
    for name, (since, before) in watch.on.items():
        route = known[name]
        if name in memory.fallbacks or look.at - since < BEGAN_AFTER:
            continue
        provider = route.provider or _paid_last(look, route)
        why = route.why or "those before it are busy"
        yield FallbackBegan(
            at=look.at, route=name, provider=provider, why=why, since=since,
            day=before.day, requests=before.requests, amount=before.amount,
        )  # fmt: skip
    for name, record in memory.fallbacks.items():
        since = watch.off.get(name, look.at)
        if name in known and look.at - since < ENDED_AFTER:
            continue
        route = known.get(name, RouteLook(name=name, stand_ins=frozenset({record.provider})))
        before = Sum(day=record.day, requests=record.requests, amount=record.amount)
        paid = _since(look.spent, route, before)
        yield FallbackEnded(
            at=look.at, route=name, after=max(0.0, since - record.since), requests=paid.requests,
            amount=paid.amount,
        )  # fmt: skip


def _providers(look: Look, watch: Watch, memory: Memory) -> Iterator[News]:
    for provider in look.providers:
        since = watch.unsound.get(provider.name)
        if provider.name in memory.failing:
            if since is None:
                after = look.at - memory.failing[provider.name]
                yield ProviderBack(at=look.at, provider=provider.name, after=max(0.0, after))
        elif since is not None and look.at - since >= FAILING_AFTER:
            yield ProviderFailing(at=look.at, provider=provider.name, why=provider.why, since=since)
    known = {provider.name for provider in look.providers}
    for name, began in memory.failing.items():
        if name not in known:  # no route names it any more
            yield ProviderBack(at=look.at, provider=name, after=max(0.0, look.at - began))


def _caps(look: Look, watch: Watch, memory: Memory) -> Iterator[News]:
    for each in look.caps:
        reported = memory.caps.get(each.about)
        if reported is not None and reported.day != look.day:
            reported = None
        if each.used < NEAR * each.cap:  # one request that is too large for what is left of it is no news
            continue
        reached = each.refused > watch.refused.get(each.about, each.refused)
        if reached and not (reported and reported.reached):
            yield CapReached(at=look.at, about=each.about, day=look.day, used=each.used, cap=each.cap)
        elif reported is None:
            yield CapNear(at=look.at, about=each.about, day=look.day, used=each.used, cap=each.cap)


def _since(spent: Iterable[Spent], route: RouteLook, before: Sum) -> Sum:
    """What stand-ins were paid for on a route beyond `before`, on its day and after. Never negative: a spend
    file that was replaced begins anew.
    """
    paid = _added(before.day, (row for row in _rows(spent, route) if row.day >= before.day))
    return replace(
        paid,
        requests=max(0, paid.requests - before.requests),
        amount=max(0, paid.amount - before.amount),
    )


def _sum(spent: Iterable[Spent], route: RouteLook, day: str) -> Sum:
    return _added(day, (row for row in _rows(spent, route) if row.day == day))


def _added(day: str, rows: Iterable[Spent]) -> Sum:
    """What these rows come to, as a sum of the day."""
    rows = list(rows)
    return Sum(day=day, requests=sum(row.requests for row in rows), amount=sum(row.amount for row in rows))


def _rows(spent: Iterable[Spent], route: RouteLook) -> Iterator[Spent]:
    return (row for row in spent if row.route == route.name and row.provider in route.stand_ins)


def _paid_last(look: Look, route: RouteLook) -> str:
    """The stand-in that was paid for most on the newest day."""
    rows = sorted(_rows(look.spent, route), key=lambda row: (row.day, row.requests))
    return rows[-1].provider if rows else ""


# -- memory ----------------------------------------------------------------------------------------------


def began(builder: MemoryBuilder, event: FallbackBegan) -> None:
    """A provider stands in on a route."""
    builder.mapping("fallbacks")[event.route] = FallbackRecord(
        provider=event.provider,
        since=event.since,
        day=event.day,
        requests=event.requests,
        amount=event.amount,
    )


def ended(builder: MemoryBuilder, event: FallbackEnded) -> None:
    """No provider stands in on it."""
    if event.route in builder.get("fallbacks"):
        builder.mapping("fallbacks").pop(event.route)


def failing(builder: MemoryBuilder, event: ProviderFailing) -> None:
    """A provider fails."""
    builder.mapping("failing")[event.provider] = event.since


def back(builder: MemoryBuilder, event: ProviderBack) -> None:
    """It answers again."""
    if event.provider in builder.get("failing"):
        builder.mapping("failing").pop(event.provider)


def cap_told(builder: MemoryBuilder, event: CapNear | CapReached) -> None:
    """What was reported of a cap; those of days before are forgotten."""
    caps = builder.mapping("caps")
    for about in [about for about, record in caps.items() if record.day < event.day]:
        caps.pop(about)
    caps[event.about] = CapRecord(day=event.day, reached=isinstance(event, CapReached))
