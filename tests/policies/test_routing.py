"""Where requests go: a table of situations, the split by weights, names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.routing import (
    Backend,
    BackendView,
    Candidate,
    Kind,
    Names,
    Route,
    Task,
    Trouble,
    When,
    choose,
)

WELL, DOWN, FULL = BackendView(), BackendView(hopeful=False, sound=False), BackendView(saturated=True)
VIEWS = {"well": WELL, "down": DOWN, "full": FULL}


def pool(name: str, *when: str, waited: float | None = None, weight: int | None = None) -> Backend:
    return Backend(kind=Kind.POOL, name=name, when=_when(when), waited=waited, weight=weight)


def api(name: str, *when: str, waited: float | None = None) -> Backend:
    return Backend(kind=Kind.PROVIDER, name=name, model="m", when=_when(when), waited=waited)


def _when(words: tuple[str, ...]) -> frozenset[When] | None:
    return frozenset(When(word) for word in words) if words else None


def route(*backends: Backend, **fields) -> Route:
    return Route(models=("r",), backends=backends, **fields)


def chosen(one: Route, views: str, draw: float = 0.0, **tried: str) -> Candidate | None:
    """`tried` maps names of backends to what the request met there."""
    troubles = {at: Trouble(tried[b.name]) for at, b in enumerate(one.backends) if b.name in tried}
    return choose(one, [VIEWS[word] for word in views.split()], troubles, draw).candidate


def name_of(candidate: Candidate | None) -> str:
    return "" if candidate is None else candidate.backend.name


PLAIN = route(pool("a"), api("p"))
BUSY = route(pool("a"), api("p", "saturated"))
EITHER = route(pool("a"), api("p", "down", "saturated"))
THREE = route(pool("a"), pool("b"), api("p"))
FLOOD = route(pool("a"), pool("flood", "saturated"), api("p", "down"))
ANY = route(pool("a"), api("p", "always"))


@pytest.mark.parametrize(
    ("one", "views", "goes_to"),
    [
        (PLAIN, "well well", "a"),
        (PLAIN, "down well", "p"),
        (PLAIN, "full well", "a"),  # a provider costs: it waits
        (PLAIN, "down down", "a"),
        (PLAIN, "full down", "a"),
        (PLAIN, "down full", "p"),  # busy is better than down
        (BUSY, "full well", "p"),
        (BUSY, "down well", "a"),  # it is there for what is busy alone
        (EITHER, "full well", "p"),
        (EITHER, "full full", "a"),
        (EITHER, "down well", "p"),
        (THREE, "down well well", "b"),
        (THREE, "full well well", "b"),
        (THREE, "down full well", "b"),  # not all of its own is down
        (THREE, "down down well", "p"),
        (THREE, "full down well", "a"),
        (FLOOD, "down well well", "p"),  # one that does not step in is no hindrance
        (FLOOD, "full well well", "flood"),
        (ANY, "well well", "a"),
        (ANY, "full well", "p"),
    ],
)
def test_the_backend_that_gets_a_new_request(one, views, goes_to):
    assert name_of(chosen(one, views)) == goes_to


@pytest.mark.parametrize(
    ("one", "views", "tried", "goes_to"),
    [
        (PLAIN, "well well", {"a": "down"}, "p"),
        (PLAIN, "well well", {"a": "saturated"}, ""),
        (PLAIN, "well well", {"a": "failed"}, ""),
        (PLAIN, "well down", {"a": "down"}, "p"),  # nothing else is left
        (PLAIN, "well well", {"a": "down", "p": "down"}, ""),
        (ANY, "well well", {"a": "failed"}, "p"),
        (ANY, "well well", {"a": "saturated"}, "p"),
        (THREE, "well well well", {"a": "down"}, "b"),
        (THREE, "well well well", {"a": "down", "b": "saturated"}, ""),
        (THREE, "well well well", {"a": "down", "b": "down"}, "p"),
        (THREE, "well well well", {"a": "failed"}, ""),
        (route(pool("a"), api("p", "down", waited=2.0)), "full well", {"a": "waited"}, "p"),
        (route(pool("a"), api("p", "down", waited=2.0)), "full well", {"a": "saturated"}, ""),
    ],
)
def test_the_backend_that_is_next(one, views, tried, goes_to):
    assert name_of(chosen(one, views, **tried)) == goes_to


@pytest.mark.parametrize(
    ("one", "views", "patience", "leaves"),
    [
        (PLAIN, "well well", None, {"down"}),
        (PLAIN, "well full", None, {"down"}),
        (PLAIN, "well down", None, set()),  # to leave for another that is down gains nothing
        (EITHER, "well well", None, {"down", "saturated"}),
        (EITHER, "well full", None, {"down"}),
        (route(pool("a"), api("p", waited=2.0)), "full well", 2.0, {"down"}),
        (route(pool("a"), api("p", waited=2.0), api("q", waited=1.0)), "full well well", 1.0, {"down"}),
        (route(pool("a"), api("p", waited=2.0), api("q", waited=1.0)), "full well down", 2.0, {"down"}),
        (route(pool("a"), api("p", waited=2.0)), "full down", None, set()),
        (route(pool("a")), "down", None, set()),
    ],
)
def test_what_makes_a_request_go_on(one, views, patience, leaves):
    candidate = chosen(one, views)
    assert candidate is not None
    assert (candidate.backend.name, candidate.patience, set(candidate.leaves)) == ("a", patience, leaves)


def test_who_was_left_out_and_why() -> None:
    dear = BackendView(hopeful=False, why="has spent its 20 USD of today")
    choice = choose(route(pool("a"), api("p"), api("q")), [DOWN, dear, WELL])
    assert [str(one) for one in choice.left_out] == [
        "pool a is down",
        "provider p (m) has spent its 20 USD of today",
    ]


def test_those_after_one_that_is_well_are_not_left_out() -> None:
    choice = choose(route(pool("a"), api("p"), api("q")), [DOWN, WELL, DOWN])
    assert [str(one) for one in choice.left_out] == ["pool a is down"]


def sequence(count: int, seed: float) -> list[float]:
    return [(seed + at * 0.6180339887498949) % 1.0 for at in range(count)]


@given(st.floats(0, 1), st.lists(st.integers(0, 100), min_size=2, max_size=5))
def test_weights_share_the_requests(seed, weights):
    one = route(*(pool(str(at), weight=weight) for at, weight in enumerate(weights)))
    views = " ".join(["well"] * len(weights))
    count = 500
    got = [int(name_of(chosen(one, views, draw))) for draw in sequence(count, seed)]
    total = sum(weights)
    for at, weight in enumerate(weights):
        share = weight / total if total else float(at == 0)
        assert abs(got.count(at) / count - share) <= 0.03


def test_a_split_of_ten_thousand_is_right_within_two_per_cent() -> None:
    one = route(pool("a", weight=90), pool("b", weight=9), pool("c", weight=1))
    got = [name_of(chosen(one, "well well well", draw)) for draw in sequence(10_000, 0.123)]
    assert [abs(got.count(n) - want) < 200 * want / 10_000 + 3 for n, want in
            (("a", 9000), ("b", 900), ("c", 100))] == [True] * 3  # fmt: skip


def test_a_backend_in_trouble_leaves_its_share_to_the_others() -> None:
    one = route(pool("a", weight=1), pool("b", weight=1), pool("c", weight=2), api("p"))
    got = [name_of(chosen(one, "well down well well", draw)) for draw in sequence(3000, 0.5)]
    assert abs(got.count("a") - 1000) < 10
    assert got.count("b") == got.count("p") == 0
    assert {name_of(chosen(one, "down down down well", draw)) for draw in sequence(100, 0.1)} == {"p"}
    assert {name_of(chosen(one, "full full full well", draw)) for draw in sequence(100, 0.1)} == set("abc")


@given(
    st.lists(st.tuples(st.sampled_from("ap"), st.sets(st.sampled_from(When))), min_size=1, max_size=4),
    st.data(),
)
def test_every_request_ends_after_trying_each_backend_once_at_most(parts, data):
    backends = tuple(
        Backend(kind=Kind.POOL if kind == "a" else Kind.PROVIDER, name=str(at), when=frozenset(when))
        for at, (kind, when) in enumerate(parts)
    )
    one, troubles = route(*backends), {}
    for _ in range(len(parts) + 1):
        views = [VIEWS[data.draw(st.sampled_from(sorted(VIEWS)))] for _ in parts]
        choice = choose(one, views, troubles)
        if choice.candidate is None:
            break
        assert choice.candidate.place not in troubles
        troubles[choice.candidate.place] = data.draw(st.sampled_from(Trouble))
    else:
        pytest.fail("it never ended")
    assert 0 in troubles or troubles, "the first backend is tried unless another steps in"


@given(st.permutations([pool("a"), pool("b"), api("p")]), st.integers(0, 3))
def test_data_that_stays_has_no_way_out(backends, cut):
    kept = tuple(backends[:cut])
    if any(backend.kind is Kind.PROVIDER for backend in kept) or not kept:
        with pytest.raises(ValueError, match=r"stays|no backend"):
            route(*kept, stays=True)
    else:
        assert route(*kept, stays=True).stays


def test_routes_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        Route(models=(), backends=(pool("a"),))
    with pytest.raises(ValueError, match="needs a name"):
        Route(models=("a", ""), backends=(pool("a"),))
    with pytest.raises(ValueError, match="weight is zero or more"):
        route(pool("a", weight=-1), pool("b", weight=1))
    with pytest.raises(ValueError, match="what different models answer"):
        route(pool("a"), api("p"), task=Task.EMBED)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("gpt-4", "gpt-4o"),
        ("GPT-4O", "gpt-4o"),
        ("asistant", "assistant"),
        ("llama", ""),
        ("", ""),
        ("\ud83d\ude00" * 3, ""),
        ("\x00", ""),
        ("g" * 1_000_000, ""),
        ("\uff41\uff53\uff53\uff49\uff53", ""),
    ],
)
def test_the_name_that_was_probably_meant(asked, nearest):
    names = Names([Route(models=("assistant", "gpt-4o"), backends=(pool("a"),))])
    assert names.find(asked) is None
    assert names.nearest(asked) == nearest


def test_written_routes_come_before_those_of_the_pools() -> None:
    mine = Route(models=("llama", "best"), backends=(api("p"),))
    own = [
        Route(models=("llama",), backends=(pool("a"),)),
        Route(models=("tiny", "best"), backends=(pool("b"),)),
    ]
    names = Names([mine], own)
    assert [one.name for one in names.listed] == ["llama", "tiny"]
    assert names.find("llama") is mine
    assert names.find("best") is mine
    assert names.find("tiny") is own[1]


def share(one: Backend, weight: int) -> Backend:
    return replace(one, weight=weight)


@pytest.mark.parametrize(
    ("one", "stand_ins"),
    [
        (route(pool("a")), set()),
        (route(pool("a"), api("p")), {"p"}),
        (route(api("p")), set()),
        (route(api("p"), api("q")), {"q"}),
        (route(pool("a"), api("p"), api("q")), {"p", "q"}),
        (route(share(pool("a"), 9), share(api("p"), 1), api("q")), {"q"}),
        (route(share(pool("a"), 1), share(api("p"), 0), api("q")), {"p", "q"}),  # no share is no first place
        (route(share(pool("a"), 1), api("p")), {"p"}),  # one weight alone splits nothing
        (route(api("p"), pool("a"), replace(api("p"), model="n")), set()),
    ],
)
def test_who_stands_in_is_neither_first_nor_in_a_split(one: Route, stand_ins: set[str]) -> None:
    assert one.stand_ins == stand_ins
