"""The tokenizer of the simulated engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.engines.simulated_server import tokens as marks
from cloud.engines.simulated_server.tokens import (
    END_OF_TEXT,
    START,
    VOCABULARY_SIZE,
    TextStream,
    chat_prompt,
    encode,
    encode_marked,
    piece,
)

ids = st.lists(st.integers(min_value=0, max_value=VOCABULARY_SIZE - 1), max_size=30)


def decode(tokens: list[int], stops: tuple[str, ...] = (), *, included: bool = False) -> str:
    text = TextStream(stops, included=included)
    parts = []
    for token in tokens:
        parts.append(text.feed(token))
        if text.matched is not None:
            return "".join(parts)
    return "".join([*parts, text.finish()])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_prompt_survives_its_ids(text: str) -> None:
    found = encode(text)
    assert all(0 <= token < VOCABULARY_SIZE for token in found)
    if "\0" not in text:  # the id of a lone zero byte ends a text
        assert b"".join(piece(token) for token in found).decode() == text


def test_a_text_that_starts_inside_a_letter_loses_that_half() -> None:
    e_acute = list("é".encode())
    assert decode([*e_acute, *encode("t")]) == "ét"
    assert decode([e_acute[1], *encode("t")]) == "t"
    assert decode([*encode("t"), e_acute[0]]) == "t"


@pytest.mark.parametrize("included", [False, True])
@given(text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_at_the_first_stop_string_that_completes(
    included: bool, text: str, stops: list[str]
) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = text
    if ends and included:
        expected = text[: min(ends)]
    elif ends:
        first = min(ends)
        expected = min(
            (text[: text.find(stop)] for stop in stops if text.find(stop) + len(stop) == first), key=len
        )
    assert decode([ord(letter) for letter in text], tuple(stops), included=included) == expected


def test_nothing_leaves_that_could_become_a_stop_string() -> None:
    text = TextStream(("END",))
    assert "".join(text.feed(ord(letter)) for letter in "to the E") == "to the"
    assert text.feed(ord("N")) == " "
    assert text.feed(ord("x")) == "E"
    assert text.finish() == "Nx"
    assert text.matched is None


def test_nothing_is_held_back_for_a_stop_string_that_is_part_of_the_text() -> None:
    text = TextStream(("END",), included=True)
    assert [text.feed(ord(letter)) for letter in "E EN"] == list("E EN")
    assert (text.feed(ord("D")), text.matched, text.finish()) == ("D", "END", "")


@pytest.mark.parametrize("other", [[("user", "hi ")], [("system", "hi")], [("user", "hi"), ("user", "")]])
def test_conversations_are_told_apart(other: list[tuple[str, str]]) -> None:
    assert chat_prompt([("user", "hi")]) != chat_prompt(other)


def test_a_text_shows_its_special_ids_only_to_whoever_wants_them() -> None:
    sequence = [START, *encode("hi"), END_OF_TEXT]
    assert decode(sequence) == "hi"
    shown = TextStream(hidden=())
    assert "".join(shown.feed(token) for token in sequence) == "<|start|>hi<|end|>"
    assert marks.decode(sequence) == "<|start|>hi<|end|>"
    assert marks.decode(sequence, marks.ALL_SPECIAL) == "hi"


def test_a_text_of_a_user_never_becomes_a_mark() -> None:
    text = "<|start|><think><tool_call><|end|>"
    assert max(encode(text)) < marks.FIRST_WORD
    assert decode(list(encode(text))) == text


def test_the_marks_of_a_model_are_ids() -> None:
    found = encode_marked("so <tool_call>{}</tool_call>")
    assert found == (*encode("so "), marks.CALL, *encode("{}"), marks.CALL_END)
    assert decode(list(found)) == "so <tool_call>{}</tool_call>"


@given(ids, st.integers(0, 30))
def test_a_stream_goes_on_from_its_pending_bytes(sequence: list[int], cut: int) -> None:
    whole, first = TextStream(), TextStream()
    text = "".join(whole.feed(token) for token in sequence)
    begun = "".join(first.feed(token) for token in sequence[:cut])
    second = TextStream(pending=first.pending)
    assert begun + "".join(second.feed(token) for token in sequence[cut:]) == text
