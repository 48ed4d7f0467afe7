"""When it is news that providers answer, fail, or come to their caps: looks in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.journal.codec import decode_event, decode_memory, encode, encode_memory
from policies.event_text import sentence
from policies.events import (
    CapNear,
    CapReached,
    DaemonStarted,
    FallbackBegan,
    FallbackEnded,
    ProviderBack,
    ProviderFailing,
)
from policies.fallback import CapLook, Look, News, ProviderLook, RouteLook, Spent, Watch, news
from policies.memory import Memory, reduce
from policies.spend import usd
from policies.value import replace

DAY, NEXT = "2026-11-30", "2026-12-01"
WELL = RouteLook(name="chat", stand_ins=frozenset({"claude", "gpt"}))
DOWN = RouteLook(name="chat", stand_ins=WELL.stand_ins, provider="claude", why="pool chat is down")


def paid(
    requests: int, cents: int, *, day: str = DAY, provider: str = "claude", route: str = "chat"
) -> Spent:
    return Spent(day=day, provider=provider, route=route, requests=requests, amount=usd(str(cents)) // 100)


class Desk:
    """Looks one after the other, as the daemon does, each of its events journalled and reduced."""

    def __init__(self) -> None:
        self.watch, self.memory, self.at, self.found = Watch(), Memory(), 0.0, list[News]()

    def look(
        self,
        *,
        routes: Sequence[RouteLook] = (),
        providers: Sequence[ProviderLook] = (),
        caps: Sequence[CapLook] = (),
        spent: Sequence[Spent] = (),
        day: str = DAY,
        heard: bool = True,
        step: float = 2.0,
    ) -> list[News]:
        self.at += step
        look = Look(
            at=self.at, day=day, heard=heard, routes=tuple(routes), providers=tuple(providers),
            caps=tuple(caps), spent=tuple(spent),
        )  # fmt: skip
        self.watch, found = news(look, self.watch, self.memory)
        self.memory = reduce(self.memory, *(decode_event(type(e).__name__, encode(e)) for e in found))
        self.found += found
        return list(found)

    def restart(self) -> None:
        """The daemon is another: what it knows is what the journal holds."""
        self.watch, self.memory = Watch(), decode_memory(encode_memory(self.memory))
        self.memory = reduce(self.memory, DaemonStarted(at=self.at, epoch=2))


def test_a_fallback_is_one_event_when_it_began_and_one_when_it_is_over_with_what_it_cost() -> None:
    desk = Desk()
    desk.look(routes=[WELL], spent=[paid(7, 700)])
    for n in range(1, 31):  # a minute
        desk.look(routes=[DOWN], spent=[paid(7 + n, 700 + n)])
    (began,) = desk.found
    assert began == FallbackBegan(
        at=14.0, route="chat", provider="claude", why="pool chat is down", since=4.0, day=DAY, requests=7,
        amount=usd("7"),
    )  # fmt: skip
    desk.found.clear()
    for _ in range(60):
        desk.look(routes=[WELL], spent=[paid(37, 730)])
    (ended,) = desk.found
    assert isinstance(ended, FallbackEnded)
    assert (ended.requests, ended.amount, ended.after) == (30, usd("0.30"), 60.0)
    assert ended.at == 62.0 + 2.0 + 60.0
    assert (
        sentence(ended)
        == "no provider stands in for chat after 60 s: 30 requests went to providers for $0.30"
    )
    assert not desk.memory.fallbacks


def test_single_requests_that_find_their_pool_busy_are_no_event() -> None:
    desk = Desk()
    for n in range(300):  # one every twelve seconds, for an hour
        desk.look(routes=[WELL], spent=[paid(n // 6, n // 6)])
    assert desk.found == []


def test_requests_that_overflow_at_every_look_are_one_although_the_pool_looks_well_in_between() -> None:
    desk = Desk()
    for n in range(10):
        desk.look(routes=[WELL], spent=[paid(n, n)])
    (began,) = desk.found
    assert isinstance(began, FallbackBegan)
    assert (began.provider, began.why) == ("claude", "those before it are busy")


def test_a_pool_that_comes_and_goes_is_one_fallback() -> None:
    desk = Desk()
    for n in range(600):  # down for 20 s, well for 40 s, and so on
        desk.look(routes=[DOWN if n % 30 < 10 else WELL], spent=[paid(n, n)] if n % 30 < 10 else [])
    assert [type(e) for e in desk.found] == [FallbackBegan]


def test_a_route_falls_back_while_another_one_has_for_long() -> None:
    desk = Desk()
    other = replace(DOWN, name="embed")
    for _ in range(20):
        desk.look(routes=[DOWN, replace(WELL, name="embed")])
    for _ in range(20):
        desk.look(routes=[DOWN, other])
    assert [(type(e), e.route) for e in desk.found] == [(FallbackBegan, "chat"), (FallbackBegan, "embed")]
    for _ in range(60):
        desk.look(routes=[DOWN, replace(WELL, name="embed")])
    assert [(type(e), e.route) for e in desk.found[2:]] == [(FallbackEnded, "embed")]


def test_a_provider_in_the_first_place_or_in_a_split_is_no_fallback() -> None:
    desk = Desk()
    own = RouteLook(name="chat", stand_ins=frozenset())
    for n in range(50):
        desk.look(routes=[own], spent=[paid(n, n)])
    assert desk.found == []


def test_a_restart_of_the_daemon_reports_nothing_twice_and_loses_no_cent() -> None:
    desk = Desk()
    for n in range(10):
        desk.look(routes=[DOWN], spent=[paid(n, n)])
    assert [type(e) for e in desk.found] == [FallbackBegan]
    desk.restart()
    for n in range(10, 20):
        desk.look(routes=[DOWN], spent=[paid(n, n)])
    desk.restart()
    for _ in range(40):
        desk.look(routes=[WELL], spent=[paid(19, 19)])
    assert [type(e) for e in desk.found] == [FallbackBegan, FallbackEnded]
    ended = desk.found[-1]
    assert isinstance(ended, FallbackEnded)
    assert (ended.requests, ended.amount) == (19, usd("0.19"))


def test_the_cost_of_a_fallback_goes_over_midnight_and_over_several_providers() -> None:
    desk = Desk()
    for n in range(10):
        desk.look(routes=[DOWN], spent=[paid(n, n)])
    later = [paid(12, 12), paid(5, 50, day=NEXT, provider="gpt"), paid(1, 1, day=NEXT, route="other")]
    for _ in range(40):
        desk.look(routes=[WELL], spent=later, day=NEXT)
    ended = desk.found[-1]
    assert isinstance(ended, FallbackEnded)
    assert (ended.requests, ended.amount) == (17, usd("0.62"))


def test_midnight_itself_is_no_sign_of_requests() -> None:
    desk = Desk()
    for n in range(40):
        day = DAY if n < 20 else NEXT
        desk.look(routes=[WELL], spent=[paid(9, 9), paid(0, 0, day=NEXT)], day=day)
    assert desk.found == []


def test_a_spend_file_that_was_replaced_gives_no_negative_cost() -> None:
    desk = Desk()
    for n in range(10):
        desk.look(routes=[DOWN], spent=[paid(100 + n, 100)])
    for _ in range(40):
        desk.look(routes=[WELL], spent=[])
    ended = desk.found[-1]
    assert isinstance(ended, FallbackEnded)
    assert (ended.requests, ended.amount) == (0, 0)


def test_a_gateway_that_does_not_answer_ends_nothing_and_begins_nothing() -> None:
    desk = Desk()
    for _ in range(10):
        desk.look(routes=[DOWN], providers=[ProviderLook(name="gpt", sound=False, why="failed")])
    assert {type(e) for e in desk.found} == {FallbackBegan, ProviderFailing}
    desk.found.clear()
    for _ in range(200):
        desk.look(heard=False)
    assert desk.found == []
    assert set(desk.memory.fallbacks) == {"chat"}


def test_a_route_and_a_provider_that_left_the_file_are_over_at_once() -> None:
    desk = Desk()
    for _ in range(10):
        desk.look(routes=[DOWN], providers=[ProviderLook(name="claude", sound=False, why="failed")])
    found = desk.look()
    assert {type(e) for e in found} == {FallbackEnded, ProviderBack}
    assert desk.look() == []


def test_a_provider_fails_after_ten_seconds_and_is_back_with_its_first_whole_answer() -> None:
    desk = Desk()
    bad = ProviderLook(name="claude", sound=False, why="failed and is left alone for a while")
    for n in range(20):  # a hiccup of four seconds now and then
        desk.look(providers=[bad if n % 5 < 2 else ProviderLook(name="claude")])
    assert desk.found == []
    for _ in range(30):
        desk.look(providers=[bad])
    (failing,) = desk.found
    assert isinstance(failing, ProviderFailing)
    assert failing.at - failing.since == 10.0
    (back,) = desk.look(providers=[ProviderLook(name="claude")])
    assert isinstance(back, ProviderBack)
    assert back.after == 60.0
    assert sentence(failing) == "provider claude failed and is left alone for a while"


def test_a_cap_is_near_once_and_reached_once_on_its_day() -> None:
    desk = Desk()

    def used(cents: int, refused: int = 0, day: str = DAY) -> list[News]:
        cap = CapLook(about="provider claude", used=usd(str(cents)) // 100, cap=usd("1"), refused=refused)
        return desk.look(caps=[cap], day=day)

    assert used(79, refused=3) == []  # what was refused before the first look is not known to be of today
    assert [type(e) for e in used(80, 3)] == [CapNear]
    assert used(70, 3) == []  # what was held is let go
    assert used(95, 3) == []
    assert used(70, 4) == []  # too large a request for what is left
    assert used(95, 4) == []
    (reached,) = used(97, 5)
    assert isinstance(reached, CapReached)
    assert sentence(reached) == (
        "the cap of provider claude is reached, $0.97 of $1.00 on 2026-11-30 used: requests are not sent "
        "because of it"
    )
    assert used(99, 9) == []
    desk.restart()
    assert used(99, 9) == []
    assert used(99, 0) == []  # another gateway counts from zero
    assert used(1, 0, NEXT) == []
    assert [type(e) for e in used(85, 0, NEXT)] == [CapNear]
    assert list(desk.memory.caps) == ["provider claude"]


def test_a_cap_that_is_reached_is_told_whatever_another_one_is_at() -> None:
    desk = Desk()

    def cap(about: str, cents: int) -> CapLook:
        return CapLook(about=about, used=usd(str(cents)) // 100, cap=usd("1"), refused=0)

    found = desk.look(caps=[cap("provider claude", 10), cap("route chat", 90), cap("route embed", 95)])
    assert [(type(e), e.about) for e in found] == [(CapNear, "route chat"), (CapNear, "route embed")]
    assert set(desk.memory.caps) == {"route chat", "route embed"}


def test_caps_are_judged_while_the_gateway_is_dead() -> None:
    desk = Desk()
    found = desk.look(heard=False, caps=[CapLook(about="route chat", used=9, cap=10)])
    assert [type(e) for e in found] == [CapNear]


@pytest.mark.parametrize("ahead", [0.0, 100_000.0])
def test_a_clock_that_was_set_back_makes_no_time_negative(ahead: float) -> None:
    desk = Desk()
    desk.at = ahead
    for _ in range(10):
        desk.look(routes=[DOWN], providers=[ProviderLook(name="gpt", sound=False, why="failed")])
    desk.at = 0.0
    desk.restart()
    for _ in range(40):
        desk.look(routes=[WELL], providers=[ProviderLook(name="gpt")])
    ended = [e for e in desk.found if isinstance(e, FallbackEnded | ProviderBack)]
    assert len(ended) == 2
    assert all(0.0 <= e.after <= 100.0 for e in ended)
