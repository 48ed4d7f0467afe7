"""Stop strings are found as the engine finds them, wherever the text was cut."""

from __future__ import annotations

import sys

from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.gateway.continuation.stops import StopStrings

TEXTS = st.lists(st.text("abé", max_size=4), max_size=12)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


def engine(parts: list[str], stops: tuple[str, ...], included: bool, least: int) -> tuple[list[str], str]:
    """vLLM 0.32's rule, a token at a time: the text after each token, what it shows, and the match."""
    text, shown, events = "", 0, []
    hold = 0 if included else max(map(len, stops)) - 1
    for count, part in enumerate(parts, start=1):
        text += part
        best, end = None, sys.maxsize
        if count > least and part:
            for stop in stops:
                at = text.find(stop, max(0, len(text) - len(part) - len(stop) + 1))
                if at >= 0 and at + len(stop) < end:
                    best, end = stop, at + len(stop)
        if best is not None:
            text = text[: end if included else end - len(best)]
            return [*events, text[shown:]], best
        events.append(text[shown : len(text) - hold] if len(text) - hold > shown else "")
        shown += len(events[-1])
    return [*events[:-1], events[-1] + text[shown:]] if events else [], ""


@given(TEXTS, STOPS, st.booleans(), st.integers(0, 5))
@example(["ab", "a", "b"], ("bab", "aba"), False, 0)
@example(["a", "", "b", "a"], ("ab",), True, 2)
def test_a_text_ends_as_the_engine_would_end_it(
    parts: list[str], stops: tuple[str, ...], included: bool, least: int
) -> None:
    expected, match = engine(parts, stops, included, least)
    search = StopStrings(stops, included=included)
    shown, found = [], ""
    for count, part in enumerate(parts, start=1):
        text, found = search.feed(part, search=count > least)
        shown.append(text)
        if found:
            break
    if not found and shown:
        shown[-1] += search.flush()
    assert (shown, found) == (expected, match)


@given(TEXTS, STOPS, st.booleans(), st.integers(0, 12))
def test_a_search_goes_on_behind_a_cut(
    parts: list[str], stops: tuple[str, ...], included: bool, cut: int
) -> None:
    expected, match = engine(parts, stops, included, 0)
    cut = min(cut, len(expected) - (1 if match else 0))
    hold = 0 if included else max(map(len, stops)) - 1
    whole = "".join(parts[:cut])
    end = max(0, len(whole) - hold)
    search = StopStrings(stops, included=included, before=whole[:end])
    search.feed(whole[end:], search=False)
    shown, found = whole[:end], ""
    for part in parts[cut:]:
        text, found = search.feed(part)
        shown += text
        if found:
            break
    assert (shown + ("" if found else search.flush()), found) == ("".join(expected), match)


def test_what_is_kept_of_a_long_text_does_not_grow() -> None:
    search = StopStrings(("stop", "s"), included=False, before="x" * 100)
    for _ in range(1000):
        search.feed("abcdefgh")
    assert len(search._text) < 20
