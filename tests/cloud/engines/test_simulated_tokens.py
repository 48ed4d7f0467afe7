"""The language model of the simulated engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.engines.simulated_server.tokens import (
    END_OF_TEXT,
    VOCABULARY_SIZE,
    Sequencer,
    TextStream,
    chat_prompt,
    encode,
    piece,
)

ids = st.lists(st.integers(min_value=0, max_value=VOCABULARY_SIZE - 1), max_size=30)


def take(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    sequencer = Sequencer(prompt, seed)
    return [sequencer.next() for _ in range(count)]


def decode(tokens: list[int], stops: tuple[str, ...] = ()) -> str:
    text = TextStream(stops)
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


@given(ids, st.integers(0, 40), st.integers(-5, 5))
def test_a_cut_text_goes_on_with_the_same_tokens(prompt: list[int], cut: int, seed: int) -> None:
    whole = take(prompt, 40, seed)
    assert take(prompt + whole[:cut], 40 - cut, seed) == whole[cut:]


def test_prompts_and_seeds_make_different_texts() -> None:
    texts = {tuple(take(list(encode(prompt)), 12, seed)) for prompt in ("a", "b") for seed in (0, 1, 2)}
    assert len(texts) == 6


def test_a_long_text_varies_and_splits_some_letters() -> None:
    tokens = take(list(encode("Tell me a story")), 2000)
    text = decode(tokens)
    assert len(set(text.split())) > 100
    assert any(not letter.isascii() for letter in text)
    assert "\ufffd" not in text
    assert END_OF_TEXT not in tokens


def test_a_text_ends_by_itself_after_about_its_mean_length() -> None:
    lengths = []
    for number in range(300):
        sequencer = Sequencer([number], 0, mean_length=20)
        lengths.append(next(n for n in range(1, 2000) if sequencer.next() == END_OF_TEXT))
    assert 15 < sum(lengths) / len(lengths) < 25


def test_a_text_that_starts_inside_a_letter_loses_that_half() -> None:
    e_acute = list("é".encode())
    assert decode([*e_acute, *encode("t")]) == "ét"
    assert decode([e_acute[1], *encode("t")]) == "t"
    assert decode([*encode("t"), e_acute[0]]) == "t"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_that_completes(text: str, stops: list[str]) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = text
    if ends:
        first = min(ends)
        expected = min(
            (text[: text.find(stop)] for stop in stops if text.find(stop) + len(stop) == first), key=len
        )
    assert decode([ord(letter) for letter in text], tuple(stops)) == expected


def test_nothing_leaves_that_could_become_a_stop_string() -> None:
    text = TextStream(("END",))
    assert "".join(text.feed(ord(letter)) for letter in "to the E") == "to the"
    assert text.feed(ord("N")) == " "
    assert text.feed(ord("x")) == "E"
    assert text.finish() == "Nx"
    assert text.matched is None


@pytest.mark.parametrize("other", [[("user", "hi ")], [("system", "hi")], [("user", "hi"), ("user", "")]])
def test_conversations_are_told_apart(other: list[tuple[str, str]]) -> None:
    assert chat_prompt([("user", "hi")]) != chat_prompt(other)
