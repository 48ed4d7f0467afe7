"""The file of keys as text: what is read, what is not taken, and that no fault repeats a key."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.accounts.key_format import (
    BYTES_MOST,
    PREFIX,
    KeyFileError,
    digest,
    name_fault,
    read_keys,
    write_key,
)
from policies.keys import ClientKey, KeyLimits
from policies.spend import usd

KEY = PREFIX + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
SHA = digest(KEY)
OTHER = digest("another")


def read(text: str) -> dict[str, ClientKey]:
    return read_keys(text.encode())


def fault(text: str | bytes) -> str:
    with pytest.raises(KeyFileError) as caught:
        read_keys(text if isinstance(text, bytes) else text.encode())
    return str(caught.value)


def table(more: str = "", name: str = "team-a", sha: str = SHA) -> str:
    return f'[key.{name}]\nsha256 = "{sha}"\n{more}\n'


def test_a_key_with_all_its_fields() -> None:
    text = table(
        'hint = "x3Zk"\nmodels = ["chat", "small-*"]\nrequests_per_minute = 600\ntokens_per_minute = 20_000\n'
        'in_flight = 16\nusd_per_day = "25.5"\ncreated = 2026-01-31T08:00:00Z\nexpires = 2027-01-31\n'
        "revoked = 2026-02-01T11:30:00+02:00"
    )
    assert read(text) == {
        "team-a": ClientKey(
            name="team-a",
            sha256=SHA,
            hint="x3Zk",
            models=("chat", "small-*"),
            limits=KeyLimits(
                requests_per_minute=600, tokens_per_minute=20_000, in_flight=16, usd_per_day=usd("25.5")
            ),
            created=1769846400.0,
            expires=1801353600.0,
            revoked=1769938200.0,
        )
    }


def test_what_is_not_written_is_no_limit() -> None:
    assert read(table()) == {"team-a": ClientKey(name="team-a", sha256=SHA)}


@pytest.mark.parametrize("text", ["", "\n", "# nobody yet\n", "key = {}", "[key]"])
def test_a_file_without_keys_lets_nobody_in_and_is_no_fault(text: str) -> None:
    assert read(text) == {}


def test_revoked_may_be_said_in_a_word() -> None:
    assert read(table("revoked = true"))["team-a"].revoked == 0.0
    assert read(table("revoked = false"))["team-a"].revoked is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("revokd = true", "no field is called 'revokd'"),
        ("models = []\nkey = 5", "no field is called 'key'"),
        ('models = "chat"', "models must be a list of names"),
        ('models = [""]', "models must be a list of names"),
        ("models = [1]", "models must be a list of names"),
        ("in_flight = -1", "in_flight must be a whole number"),
        ("in_flight = true", "in_flight must be a whole number"),
        ("in_flight = 1.5", "in_flight must be a whole number"),
        ("tokens_per_minute = '5'", "tokens_per_minute must be a whole number"),
        ("requests_per_minute = 10_000_000_000_000", "requests_per_minute must be a whole number"),
        ('usd_per_day = "lots"', "usd_per_day must be an amount"),
        ("usd_per_day = true", "usd_per_day must be an amount"),
        ("usd_per_day = -1", "usd_per_day must be an amount"),
        ("usd_per_day = inf", "usd_per_day must be an amount"),
        ("usd_per_day = []", "usd_per_day must be an amount"),
        ('expires = "2027-01-31"', "expires must be a date or a time in UTC without quotes"),
        ("expires = 2027-01-31T08:00:00", "expires must be a date or a time in UTC without quotes"),
        ("expires = 0", "expires must be a date or a time in UTC without quotes"),
        ("revoked = 1", "revoked must be a date or a time in UTC without quotes"),
        ("revoked = 'yes'", "revoked must be a date or a time in UTC without quotes"),
        ('hint = "x3Zkx3Zkx"', "hint must be text of up to 8 characters"),
        ('hint = "\\u001b[2J"', "hint must be text of up to 8 characters"),
    ],
)
def test_what_is_not_understood_is_said(more: str, said: str) -> None:
    assert fault(table(more)).startswith(f"key team-a: {said}")


@pytest.mark.parametrize("sha", ["", SHA.upper(), SHA[:-1], SHA + "0", KEY, "sha256:" + SHA])
def test_a_hash_that_is_none(sha: str) -> None:
    assert fault(table(sha=sha)).startswith("key team-a: sha256 must be the SHA-256 of the key")


def test_a_table_without_its_hash() -> None:
    assert "sha256 must be" in fault("[key.team-a]\nhint = 'abcd'")
    assert fault("key.team-a = 5") == "key team-a: is no table"
    assert fault("key = 5") == "has something else than tables [key.NAME] under key"
    assert fault("[keys.team-a]\n") == "has something beside its tables [key.NAME]: 'keys'"


def test_one_key_under_two_names() -> None:
    assert fault(table() + table(name="b")) == "has one key under two names, team-a and b"


@pytest.mark.parametrize("name", ["other", '"a b"', '""', '"-a"', '"a.b"', '"é"', f'"{"a" * 65}"', '"a\\n"'])
def test_names_that_cannot_be(name: str) -> None:
    assert fault(table(name=name)).startswith("has a key whose name cannot be: ")


def test_names_that_can_be() -> None:
    assert {name_fault(name) for name in ("a", "team-a", "Team_A-1", "9", "others", "a" * 64)} == {""}


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"{KEY} = 1",
        f'key = "{KEY}"',
        f'[key."{KEY}"]\nsha256 = "{SHA}"',
        f"[key.{KEY}]\nsha256 = '{SHA}'",
        f'[key.a]\nsha256 = "{KEY}"',
        f'[key.a]\nsha256 = "{SHA}"\n{KEY} = 1',
        f'[key.a]\nsha256 = "{SHA}"\nkey = "{KEY}"',
        f'[key.a]\nsha256 = "{SHA}"\nhint = "{KEY}"',
        f'[key.a]\nsha256 = "{SHA}"\nexpires = "{KEY}"',
        f'[key.a]\nsha256 = "{SHA}"\nusd_per_day = "{KEY}"',
        f"[key.a]\nsha256 = '{KEY}",
        f"[{KEY}]\n[{KEY}]",
        f"[key.a]\n{KEY} = 1\n{KEY} = 2",
        f"[key.a]\nmodels = {{ {KEY} = 1, {KEY} = 2 }}",
    ],
)
def test_no_fault_repeats_a_key_in_the_wrong_place(text: str) -> None:
    assert KEY[len(PREFIX) : len(PREFIX) + 8] not in fault(text)


def test_text_that_is_no_text_of_keys() -> None:
    assert fault(b"\xff") == "is not UTF-8 text"
    assert fault("[key.a\n").startswith("is not TOML: ")
    assert "line 2" in fault("[key.a]\nsha256 = \n")
    assert fault("x = " + "[" * 20_000) == "is not TOML that could be a file of keys"
    assert fault("x = " + "9" * 10_000) == "is not TOML that could be a file of keys"
    assert fault(b"#" * (BYTES_MOST + 1)) == f"has more than {BYTES_MOST} bytes"


@pytest.mark.parametrize("key", ["", "k", "ü", "\udcff\udc00", KEY, "x" * 100_000])
def test_any_text_has_a_digest(key: str) -> None:
    assert digest(key) == hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


moments = st.integers(0, 4_000_000_000).map(float)
keys = st.builds(
    ClientKey,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True).filter(lambda n: not name_fault(n)),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    hint=st.text("abcXYZ019-_", max_size=8),
    models=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    limits=st.builds(
        KeyLimits,
        requests_per_minute=st.integers(0, 10**6),
        tokens_per_minute=st.integers(0, 10**9),
        in_flight=st.integers(0, 10**4),
        usd_per_day=st.none() | st.integers(0, 10**18),
    ),
    created=moments,
    expires=st.none() | moments,
    revoked=st.none() | moments,
)


@given(keys)
def test_what_is_written_reads_as_it_was(key: ClientKey) -> None:
    assert read(write_key(key)) == {key.name: key}
