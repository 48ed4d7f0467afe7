"""The language model of the simulated engine: texts, scripts and grammars."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.engines.simulated_server.model import Sequencer
from cloud.engines.simulated_server.schema import Unknown, call_tag, forced_text, instance, text_of
from cloud.engines.simulated_server.tokens import (
    CALL,
    CALL_END,
    END_OF_TEXT,
    THINK,
    THINK_END,
    VOCABULARY_SIZE,
    chat_prompt,
    decode,
    encode,
)

ids = st.lists(st.integers(min_value=0, max_value=VOCABULARY_SIZE - 1), max_size=30)
CALLS = chat_prompt([("user", 'The weather?\n!think 3\n!say 2\n!call weather {"city": "Köln"}')])


def take(prompt: list[int], count: int, seed: int = 0, **how: Any) -> list[int]:
    sequencer = Sequencer(prompt, seed, **how)
    return [sequencer.next() for _ in range(count)]


def answer(*messages: tuple[str, str], seed: int = 0, **how: Any) -> list[int]:
    """What the model says, up to the end of its text; at most 500 tokens."""
    said = take(list(chat_prompt(messages)), 500, seed, **how)
    return said[: said.index(END_OF_TEXT)] if END_OF_TEXT in said else said


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


def test_a_message_can_ask_for_thoughts_text_and_calls() -> None:
    said = answer(("user", 'Hi\n!think 3\n!say 2\n!call weather {"city": "Köln"}\n!call tell {}'))
    assert (said[0], said[4]) == (THINK, THINK_END)
    rest = said[5:]
    assert rest[2] == CALL
    assert decode(rest[2:]) == (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
        '<tool_call>\n{"name": "tell", "arguments": {}}\n</tool_call>'
    )
    assert rest[-1] == CALL_END


@given(st.integers(0, 60), st.integers(0, 3))
def test_a_cut_script_goes_on_with_the_same_tokens(cut: int, seed: int) -> None:
    whole = take(list(CALLS), 60, seed)
    assert END_OF_TEXT in whole
    assert take([*CALLS, *whole[:cut]], 60 - cut, seed) == whole[cut:]


def test_thoughts_alone_leave_the_answer_open() -> None:
    said = answer(("user", "!think 4"))
    assert said[5] == THINK_END
    assert len(said) == 500
    assert not {THINK, CALL, THINK_END} & set(said[6:])


@pytest.mark.parametrize("count", range(1, 60, 7))
def test_the_text_of_a_script_has_whole_letters(count: int) -> None:
    for seed in range(20):
        assert "\ufffd" not in decode(answer(("user", f"!say {count}\n!call f {{}}"), seed=seed))


def test_only_the_last_message_is_a_script() -> None:
    earlier = answer(("user", "!call f {}"), ("assistant", "so"), ("tool", "sunny"))
    assert CALL not in earlier
    assert len(earlier) == 500
    assert CALL not in take(list(encode("!call f {}")), 60), "a completion is no conversation"


def test_a_script_ends_the_text_unless_the_client_forbids_it() -> None:
    assert len(answer(("user", "!say 4"))) == 4
    assert len(answer(("user", "!say 4"), endless=True)) == 500


def test_a_grammar_starts_anew_in_a_continuation() -> None:
    prompt = list(chat_prompt([("user", "!say 4")]))
    whole = take(prompt, 4, grammar='{"a": 1}', endless=True)
    assert decode(whole) == '{"a": 1}'
    assert take(prompt, 5, grammar='{"a": 1}', endless=True)[4] == END_OF_TEXT
    again = take([*prompt, *whole[:2]], 4, grammar='{"a": 1}')
    assert again == whole


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}}, {"a": 7, "b": "some words"}),
        ({"properties": {"a": {"enum": ["x", "y"]}}}, {"a": "x"}),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"type": ["null", "string"]}, None),
        ({"anyOf": [{"const": 3}, {"type": "string"}]}, 3),
        ({"type": "string", "minLength": 12}, "some wordsxx"),
        ({"type": "string", "maxLength": 4}, "some"),
        ({"$defs": {"n": {"type": "number"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}, {"a": 1.5}),
        ({"$ref": "#/nowhere"}, None),
        (True, None),
    ],
)
def test_a_schema_gets_one_value(schema: Any, value: Any) -> None:
    assert instance(schema) == value


def test_a_schema_that_contains_itself_comes_to_an_end() -> None:
    assert json.dumps(instance({"properties": {"next": {"$ref": "#"}}})).count("next") > 3


def test_what_structured_outputs_force() -> None:
    assert forced_text({"json": {"const": "ä"}}) == '"ä"'
    assert forced_text({"json": '{"const": 1}'}) == "1"
    assert json.loads(forced_text({"json_object": True})) == {"answer": "some words"}
    assert forced_text({"choice": ["yes", "no"]}) == "yes"
    assert forced_text({"regex": r"Wait\. (Bern|Oslo)\n(x|\{\})!"}) == "Wait. Bern\nx!"
    tag = text_of({"tags": [call_tag("f", {"properties": {"a": {"const": 1}}})]})
    assert forced_text({"structural_tag": tag}) == (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    )


@pytest.mark.parametrize("structured", [{"grammar": "root"}, {"regex": "a+"}, {"choice": []}])
def test_what_structured_outputs_cannot_force(structured: Any) -> None:
    with pytest.raises(Unknown):
        forced_text(structured)
