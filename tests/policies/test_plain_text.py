"""Text of strangers cannot steer a terminal, nor grow beyond its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.plain_text import CUT, last_lines, one_line


@given(st.text(st.characters(codec="utf-16"), max_size=400), st.integers(1, 80))
def test_a_line_is_printable_and_bounded(text, most):
    line = one_line(text, most)
    assert len(line) <= most
    assert line.isprintable()
    assert one_line(line, most) == line


@given(st.text(max_size=600), st.integers(1, 6), st.integers(1, 200))
def test_the_end_of_a_log_is_printable_and_bounded(text, lines, most):
    end = last_lines(text, lines=lines, most=most)
    assert len(end.encode()) <= most
    assert all(line.isprintable() for line in end.split("\n"))
    assert end.count("\n") <= lines


@pytest.mark.parametrize(
    "hidden",
    [
        "\x1b[31m",
        "\x1b[2J\x1b[H",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1bP+q544e\x1b\\",
        "\x1b(B",
        "\x1bc",
        "\x9b2J",
    ],
)
def test_of_an_escape_sequence_nothing_is_left(hidden):
    assert one_line(f"a{hidden}b", 50) == "ab"
    assert last_lines(f"a{hidden}b\n", lines=3, most=50) == "ab"


@pytest.mark.parametrize(
    "mark", ["\x00", "\x07", "\x1b", "\u202e", "\u2066", "\u200b", "\x85", "\u2028", "\ud800"]
)
def test_a_mark_that_is_not_seen_becomes_a_blank(mark):
    assert one_line(f"a{mark}b", 50) in ("a b", "a")  # an escape alone takes what follows
    assert last_lines(f"a {mark} b", lines=3, most=50).split() in (["a", "b"], ["a"])


def test_an_unfinished_sequence_takes_no_later_line_with_it() -> None:
    assert last_lines("one\n\x1b]0;never ends\ntwo\n", lines=5, most=50) == "one\ntwo"


def test_what_was_cut_off_is_told() -> None:
    assert last_lines("\n".join(map(str, range(100))), lines=2, most=500) == f"{CUT}\n98\n99"
    assert last_lines("x" * 100, lines=9, most=20) == f"{CUT}\n" + "x" * 16
    assert last_lines("é" * 100, lines=9, most=11) == f"{CUT}\n" + "é" * 3


def test_a_flood_of_empty_lines_pushes_nothing_out() -> None:
    assert last_lines("out of memory\n" + "\r\n" * 500, lines=40, most=4096) == "out of memory"


def test_a_megabyte_costs_its_end_only() -> None:
    end = last_lines("x" * 1_000_000 + "\n" + "\x1b[31mthe last\x1b[0m", lines=40, most=4096)
    assert end.endswith("the last")
    assert len(end.encode()) <= 4096
