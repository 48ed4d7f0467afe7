"""Requests with one key keep one target, which is never much busier than the others because of it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.balancers.targets import TargetSet
from orchestrator.gateway import affinity
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.entry import Wish
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.targets import TargetTable
from policies.model import TargetSpec


def table_of(*names, weights=None, **settings):
    gate = PoolGate(targets_file=Path("t"), **settings)
    made = TargetTable(now=lambda: 100.0, rng=random.Random(1), gate=gate)
    put(made, 1, *names, weights=weights)
    return made


def put(table, generation, *names, weights=None):
    specs = tuple(
        TargetSpec(id=name, address=f"{name}:80", **({"weight": weights[name]} if weights else {}))
        for name in names
    )
    table.apply(TargetSet(generation=generation, pool="p", written_at=1.0, targets=specs))
    for entry in table:
        table.checked(entry, "", 1)


def homes(table, sessions):
    return {n: table.choose(Wish(affinity.key_of(f"session {n}"))).spec.id for n in range(sessions)}


def test_the_loss_of_a_node_moves_its_own_sessions_alone():
    table = table_of(*"abcde")
    before = homes(table, 10_000)
    put(table, 2, *"abde")
    after = homes(table, 10_000)
    stayed = [before[n] == after[n] for n in before if before[n] != "c"]
    assert all(stayed)
    put(table, 3, *"abcde")
    assert homes(table, 10_000) == before


def test_over_95_per_cent_are_kept_under_load():
    """A hundred and more open at each node, the bound binds now and then; its sessions stay all the same."""
    names = [f"node-{n}" for n in range(8)]
    table, rng = table_of(*names), random.Random(5)
    where = {}

    def traffic(requests):
        """Each session sends some requests; 1,000 of all are open at a time."""
        opened, kept = [], Counter()
        for _ in range(requests):
            session = rng.randrange(2000)
            entry = table.choose(Wish(affinity.key_of(f"session {session}")))
            table.take(entry)
            opened.append(entry)
            if len(opened) > 1000:
                table.give(opened.pop(rng.randrange(1000)))
            if session in where:
                kept[where[session] == entry.spec.id] += 1
            where[session] = entry.spec.id
        for entry in opened:
            table.give(entry)
        return kept

    traffic(10_000)
    put(table, 2, *names[1:])
    before = {session: node for session, node in where.items() if node != names[0]}
    where.clear()
    where.update(before)
    kept = traffic(10_000)
    assert kept[True] / kept.total() > 0.95


@given(st.integers(1, 12), st.integers(1, 400), st.integers(0, 9))
def test_no_target_is_much_busier_than_the_mean(nodes, requests, busy):
    """All requests of one session, or of a few: the bound holds for each."""
    table = table_of(*[f"n{n}" for n in range(nodes)])
    for number in range(requests):
        table.take(table.choose(Wish(affinity.key_of(f"{number % (busy + 1)}"))))
    most = max(entry.in_flight for entry in table)
    assert most <= affinity.BOUND * requests / nodes + 1
    assert sum(entry.in_flight for entry in table) == requests


def test_weights_count():
    table = table_of("small", "large", weights={"small": 100, "large": 300})
    share = Counter(homes(table, 4000).values())["large"] / 4000
    assert 0.72 < share < 0.78


def test_a_target_that_failed_the_request_or_is_not_sound_is_passed_over():
    table = table_of(*"abc")
    key = affinity.key_of("s")
    home = table.choose(Wish(key))
    wish = Wish(key)
    wish.failed_at(home)
    second = table.choose(wish)
    assert second is not home
    table.blame(home, Failure.CONNECT)
    assert table.choose(Wish(key)) is second
    table.checked(home, "", 1)
    assert table.choose(Wish(key)) is home


def test_where_every_target_is_full_it_waits_like_any_other():
    table = table_of(*"ab", max_in_flight=1)
    for _ in range(2):
        table.take(table.choose(Wish(affinity.key_of("s"))))
    assert table.choose(Wish(affinity.key_of("s"))) is None


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"messages": [S := {"role": "system", "content": "x"}, U := {"role": "user", "content": "a"}]},
         {"messages": [S, U, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}, True),
        ({"messages": [S, U]}, {"messages": [S, {"role": "user", "content": "z"}]}, False),
        ({"messages": [S]}, {"messages": [S]}, True),
        ({"prompt": "x" * 5000 + "a"}, {"prompt": "x" * 5000 + "b"}, True),
        ({"prompt": [1, 2]}, {"prompt": [1, 3]}, False),
        ({"input": "a"}, {"input": "a"}, True),
    ],
)  # fmt: skip
def test_how_requests_begin(one, other, alike):
    assert (affinity.beginning(one) == affinity.beginning(other)) is alike
    assert affinity.beginning(one)


@pytest.mark.parametrize("fields", [{}, {"messages": []}, {"prompt": ""}, {"prompt": None}, {"input": []}])
def test_what_begins_with_nothing_has_no_home(fields):
    assert affinity.beginning(fields) == b""


@pytest.mark.parametrize("messages", [["x"], [None], [{"role": ["user"]}], 7, "user"])
def test_odd_messages_do_no_harm(messages):
    affinity.beginning({"messages": messages})


@given(st.text() | st.binary())
def test_a_key_is_64_bits_and_always_the_same(text):
    assert 0 <= affinity.key_of(text) == affinity.key_of(text) < 2**64


# -- load in tokens -------------------------------------------------------------------------------


def test_load_in_tokens_goes_to_who_has_fewest():
    table = table_of(*"ab", tokens_in_flight=1000)
    big, small = Wish(None, 900), Wish(None, 50)
    first = table.choose(big)
    table.take(first, big)
    for _ in range(3):
        entry = table.choose(small)
        assert entry is not first
        table.take(entry, small)
    assert table.choose(Wish(None, 200)) is entry
    assert table.choose(big) is None  # neither has room for it
    table.give(first, big)
    assert table.choose(big) is first
    assert first.tokens == 0


def test_one_request_is_let_in_however_large_it_is():
    table = table_of("a", tokens_in_flight=10)
    huge = Wish(None, 10_000)
    entry = table.choose(huge)
    assert entry is not None
    table.take(entry, huge)
    assert table.choose(Wish(None, 1)) is None
