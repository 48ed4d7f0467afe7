"""What the user wrote wins over what we would add."""

from __future__ import annotations

import pytest

from cloud.engines.flags import flag_value, has_flag, overridden, seconds, with_defaults, with_switches


@pytest.mark.parametrize(
    ("args", "given"),
    [
        ((), False),
        (("--port", "1"), True),
        (("--port=1",), True),
        (("--shutdown-timeout", "--port"), True),
        (("port",), False),
        (("--port-range", "1"), False),
    ],
)
def test_a_flag_is_given_as_two_words_or_one(args: tuple[str, ...], given: bool) -> None:
    assert has_flag(args, "--port") is given


def test_underscores_spell_the_same_flag() -> None:
    assert has_flag(("--served_model_name", "a"), "--served-model-name")
    assert flag_value(("--shutdown_timeout=7",), "--shutdown-timeout") == "7"


def test_the_last_value_counts() -> None:
    assert flag_value(("--seed", "1", "--seed=2"), "--seed") == "2"
    assert flag_value(("--seed=1", "--seed", "2"), "--seed") == "2"
    assert flag_value(("--seed",), "--seed") is None
    assert flag_value(("--other", "1"), "--seed") is None


def test_an_underscore_in_a_value_is_no_flag() -> None:
    args = ("--hf-overrides", '{"max_len": 1}', "--host=my_host")
    assert flag_value(args, "--host") == "my_host"
    assert with_defaults(args, ()) == args


def test_our_flags_stand_before_the_users_and_only_where_he_gives_none() -> None:
    ours = (("--host", "{host}"), ("--port", "{port}"))
    assert with_defaults(("--port=9", "-tp", "2"), ours) == ("--host", "{host}", "--port=9", "-tp", "2")


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ((), ("--a", "--b-c")),
        (("--x", "1"), ("--a", "--b-c", "--x", "1")),
        (("--b_c",), ("--a", "--b_c")),
        (("--no-a", "--x"), ("--b-c", "--x")),
        (("--no_b_c", "--no-x", "--a"), ("--no-x", "--a")),
    ],
)
def test_our_switches_can_be_given_and_refused(args: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert with_switches(args, ("--a", "--b-c")) == found


@pytest.mark.parametrize(
    ("text", "found"), [(None, 3.0), ("12.5", 12.5), ("0", 0.0), ("-4", 0.0), ("soon", 3.0)]
)
def test_seconds_of_a_flag(text: str | None, found: float) -> None:
    assert seconds(text, 3.0) == found


@pytest.mark.parametrize(
    ("args", "own", "made"),
    [
        ((), ("--a", "1"), ("--a", "1")),
        (("--a", "1"), (), ("--a", "1")),
        (("--a", "1", "--b", "2"), ("--a", "3"), ("--b", "2", "--a", "3")),
        (("--a=1", "--b"), ("--a", "3"), ("--b", "--a", "3")),
        (("--max_model_len", "1"), ("--max-model-len=2",), ("--max-model-len=2",)),
        (("-tp", "1", "x"), ("--tensor-parallel-size", "8"), ("--tensor-parallel-size", "8")),
        (("--tensor-parallel-size", "1"), ("-tp=8",), ("-tp=8",)),
        (("-c", "4096", "--b", "2"), ("-c", "8192"), ("--b", "2", "-c", "8192")),
        (("--list", "a", "b", "--c"), ("--list", "d"), ("--c", "--list", "d")),
        (("--len", "-1", "--c"), ("--len", "5"), ("--c", "--len", "5")),
        (("--switch", "--b", "2"), ("--b", "3"), ("--switch", "--b", "3")),
        (("first", "--b", "2"), ("--b", "3"), ("first", "--b", "3")),
    ],
)
def test_flags_on_top_replace_those_of_the_same_name_with_their_values(args, own, made) -> None:
    assert overridden(args, own) == made
