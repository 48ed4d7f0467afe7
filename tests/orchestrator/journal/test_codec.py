"""Whatever the journal stores comes back as it was, and what cannot be read says why."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.journal.codec import (
    EVENT_TYPES,
    UnknownRecord,
    decode_event,
    decode_memory,
    encode,
    encode_memory,
    printable,
)
from policies import adapter_events, events
from policies.memory import Memory, reduce
from policies.model import Confidence, Notice, NoticeKind

# Names repeat, so that events meet in one memory; numbers are those that JSON has.
NAMES = st.sampled_from(["i-1", "i-2", "p/1/1", "i-1:terminate", "i-2:start", "gw", "", "ünïcode ☃ \x00"])
TIMES = st.floats(0, 1e10, allow_nan=False)
NUMBERS = st.integers(-(2**53), 2**53)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the event classes use them."""
    if hint is str:
        return NAMES
    if hint is float:
        return TIMES
    if hint is int:
        return NUMBERS
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{f.name: values(hints[f.name]) for f in dataclasses.fields(hint)})
    if get_origin(hint) in (types.UnionType, typing.Union):
        return st.one_of([values(kind) for kind in get_args(hint)])
    if get_origin(hint) is tuple:
        *kinds, last = get_args(hint)
        if last is Ellipsis:
            return st.lists(values(kinds[0]), max_size=4).map(tuple)
        return st.tuples(*(values(kind) for kind in (*kinds, last)))
    return st.from_type(hint)


any_event = st.one_of([values(kind) for kind in get_args(events.Event)])


def test_every_event_has_a_name() -> None:
    assert {kind.__name__ for kind in get_args(events.Event)} == set(EVENT_TYPES)
    declared = {
        value
        for module in (events, adapter_events)
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and isinstance(value, type)
    }
    modules = (events.__name__, adapter_events.__name__)
    declared = {kind for kind in declared if kind.__module__ in modules}
    assert declared <= set(EVENT_TYPES.values())


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind: str, data: st.DataObject) -> None:
    event = data.draw(values(EVENT_TYPES[kind]))
    assert decode_event(kind, encode(event)) == event


@settings(max_examples=150, deadline=None)
@given(st.lists(any_event, max_size=25))
def test_memory_comes_back_as_it_was(history: list[events.Event]) -> None:
    memory = reduce(Memory(), *history)
    assert decode_memory(encode_memory(memory)) == memory


@settings(max_examples=100, deadline=None)
@given(st.lists(any_event, max_size=20), st.integers(0, 20))
def test_a_snapshot_and_the_rest_give_the_same_as_all(history: list[events.Event], cut: int) -> None:
    kept = decode_memory(encode_memory(reduce(Memory(), *history[:cut])))
    assert reduce(kept, *history[cut:]) == reduce(Memory(), *history)


def test_an_older_snapshot_lacks_fields_and_a_newer_one_has_more() -> None:
    memory = reduce(Memory(), events.PoolConfigured(at=1.0, replicas=4))
    stored = orjson.loads(encode_memory(memory))
    del stored["preemptions"]
    stored["from the future"] = 1
    assert decode_memory(orjson.dumps(stored)) == memory


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("Nonsense", b"{}", "event kind 'Nonsense' is not known"),
        ("PoolWhole", b"{", "event PoolWhole cannot be read"),
        ("PoolWhole", b"[]", "event PoolWhole cannot be read"),
        ("PoolWhole", b"{}", "event PoolWhole cannot be read"),
        ("PoolWhole", b'{"at": "soon"}', "event PoolWhole cannot be read"),
        ("NodeGone", b'{"at": 1, "node": "n", "cause": "boredom"}', "boredom|terminated"),
        ("PoolWhole", b"\xff\xfe", "event PoolWhole cannot be read"),
    ],
)
def test_an_unreadable_event_says_why(kind: str, body: bytes, says: str) -> None:
    with pytest.raises(UnknownRecord, match=says):
        decode_event(kind, body)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b'{"nodes": 3}', b'{"nodes": [[1]]}', b'{"epoch": "x"}']
)
def test_an_unreadable_snapshot_says_so(body: bytes) -> None:
    with pytest.raises(UnknownRecord, match="the memory snapshot cannot be read"):
        decode_memory(body)


def forged(text: str) -> events.NoticeSeen:
    said = Notice(
        id=text,
        kind=NoticeKind.INTERRUPTION,
        node=text,
        deadline=9.0,
        source="agent",
        confidence=Confidence.REPORTED,
        seen_at=1.0,
    )
    return events.NoticeSeen(at=1.0, notice=said)


def test_text_that_utf8_cannot_hold_does_not_stop_the_journal() -> None:
    found = decode_event("NoticeSeen", encode(forged("i-\ud800")))
    assert found == forged("i-?")
    memory = reduce(Memory(), forged("i-\ud800"))
    assert list(decode_memory(encode_memory(memory)).early_notices) == ["i-?"]


@given(st.text(st.characters(exclude_categories=())))
def test_printable_text_can_always_be_stored(text: str) -> None:
    assert printable(text).encode().decode() == printable(text)
    assert "\0" not in printable(text)
    if not any(0xD800 <= ord(c) <= 0xDFFF or c == "\0" for c in text):
        assert printable(text) == text


def test_endless_deadlines_become_none() -> None:
    """JSON has no infinity; memory never holds one, so a round trip loses nothing."""
    said = dataclasses.replace(forged("i-1").notice, deadline=math.inf)
    memory = reduce(Memory(), events.NoticeSeen(at=1.0, notice=said))
    assert memory.early_notices["i-1"][0].deadline is None
    assert decode_memory(encode_memory(memory)) == memory
