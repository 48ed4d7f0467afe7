"""What keeps a TOML file from being read: one sentence, and the line where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.errors import PROBLEMS_MOST
from orchestrator.config.load import ConfigError, load_config
from orchestrator.config.toml_text import BYTES_MOST, DEPTH_MOST, TomlError, parse_toml, read_toml

DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a = 1\nx = " + "[" * DEEP + "]" * DEEP, 2, "nested more than 32 deep"),
        ("x = " + "[" * DEEP, 1, "nested more than 32 deep"),
        ("a = 1\n\nx = " + "{a=" * DEEP + "1" + "}" * DEEP, 3, "nested more than 32 deep"),
        ("x = " + "[\n" * 60 + "]" * 60, DEPTH_MOST + 1, "nested more than 32 deep"),
        ("a = 1\n" + "c." * 60 + "b = 1", 2, "nested more than 32 deep"),
        ("a = 1\n[" + "d." * 60 + "b]\nc = 1", 2, "nested more than 32 deep"),
        ("a = 1\n" + "c." * 4_000 + "b = 1", 2, "has more than 1000 dots"),
        ("a = 1\n[" + "d." * 4_000 + "b]\nc = 1", 2, "has more than 1000 dots"),
        ("a = {" + "d." * 4_000 + "b = 1}", 1, "has more than 1000 dots"),
        ("# \u2028\nx = " + "[" * 60 + "]" * 60, 2, "nested more than 32 deep"),
        ("a = 1\nb = " + "9" * 5_000, 2, "more than 64 bits"),
        ("a = 1\nb = [1,\n" + "9" * 20 + "9]", 3, "more than 64 bits"),
        ("b = 0x" + "f" * 5_000, 1, "more than 64 bits"),
        ("a = 1\na = 2", 2, "the key is there already: keep one of the two"),
        ("[a]\n[a]\n", 2, "the table is there already"),
        ("a = 1\nb = 'x\0'", 2, "invalid character"),
        ("a = 1\nb = 2024-02-31", 2, "invalid date"),
        ("a = 70%", 1, "correct the syntax"),
    ],
)
def test_every_fault_is_a_sentence_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(TomlError) as caught:
        parse_toml(text)
    assert (caught.value.line, says in str(caught.value)) == (line, True), str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_may_be_deep_or_long_may_be_so() -> None:
    deep = "[" * (DEPTH_MOST - 1) + "]" * (DEPTH_MOST - 1)
    text = f"a = {deep}\nb = '{'[' * 1000}{'9' * 5000}'\n# {'{' * 1000}\nc = {2**63 - 1}\nd = -{2**63}"
    assert parse_toml(text)["c"] == 2**63 - 1


def test_no_more_of_a_file_is_read_than_a_configuration_has(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("#" * BYTES_MOST, encoding="utf-8")
    assert read_toml(file)[0] == {}
    with file.open("ab") as more:
        more.truncate(100 * 2**20)
    with pytest.raises(TomlError, match="larger than 256 KiB"):
        read_toml(file)


def test_text_of_another_encoding_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=r"pool\.toml:2: is not UTF-8 text \(byte 11\)"):
        load_config(file)


def test_of_many_faults_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    keys = "\n".join(f"key{number} = 1" for number in range(PROBLEMS_MOST + 50))
    file.write_text(f"[pool.test]\nreplicas = 2\n{keys}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(caught.value.problems) == PROBLEMS_MOST + 1
    assert str(caught.value.problems[-1]) == f"{file}: and 50 more faults; is it the right file?"
