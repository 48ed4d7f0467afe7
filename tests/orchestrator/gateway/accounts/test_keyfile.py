"""Keys in a running gateway: whose key a request has, and a file that changes, breaks and comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict
from structlog.testing import capture_logs

from orchestrator.gateway.accounts import keyfile
from orchestrator.gateway.accounts.key_format import digest
from orchestrator.gateway.accounts.keyfile import ClientKeys, Refused
from orchestrator.gateway.dialects import Unfit
from policies.keys import ClientKey
from tests.support.hand_clock import HandClock

SECRET = "sk-orch-one-secret-of-a-client"


def table(name: str = "team-a", secret: str = SECRET, more: str = "") -> str:
    return f'[key.{name}]\nsha256 = "{digest(secret)}"\n{more}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(table())
    return path


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def keys(file: Path, clock: HandClock) -> Iterator[ClientKeys]:
    made = ClientKeys(file, clock)
    yield made
    made.close()


async def settle(keys: ClientKeys) -> None:
    """What a second of looks does at least."""
    await keys.look()
    await keys.look()


def head(*rows: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(rows)


def bearer(secret: str = SECRET) -> CIMultiDict[str]:
    return head(("Authorization", f"Bearer {secret}"))


def refusal(keys: ClientKeys, headers: CIMultiDict[str]) -> Unfit:
    with pytest.raises(Unfit) as caught:
        keys.identify(headers)
    return caught.value


# -- whose key a request has --------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {SECRET}")],
        [("authorization", f"bearer   {SECRET}\t")],
        [("AUTHORIZATION", f"BEARER {SECRET}")],
        [("x-api-key", SECRET)],
        [("X-Api-Key", f" {SECRET} ")],
        [("x-api-key", SECRET), ("Authorization", f"Bearer {SECRET}")],
        [("x-api-key", ""), ("Authorization", f"Bearer {SECRET}")],
        [("x-api-key", SECRET), ("Authorization", "Bearer ")],
        [("x-api-key", SECRET), ("x-api-key", SECRET)],
    ],
)
async def test_a_key_is_found_where_sdks_put_it(keys, headers):
    await keys.start()
    found = keys.identify(head(*headers))
    assert found is not None
    assert found.name == "team-a"
    assert sum(keys.refused.values()) == 0


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([], Refused.MISSING),
        ([("Authorization", "")], Refused.MISSING),
        ([("Authorization", "Bearer")], Refused.MISSING),
        ([("Authorization", "Bearer  ")], Refused.MISSING),
        ([("Authorization", SECRET)], Refused.MISSING),
        ([("Authorization", f"Basic {SECRET}")], Refused.MISSING),
        ([("Authorization", f"Bearer\t{SECRET}")], Refused.MISSING),
        ([("Cookie", SECRET), ("X-Key", SECRET)], Refused.MISSING),
        ([("x-api-key", SECRET), ("Authorization", "Bearer other")], Refused.SEVERAL),
        ([("x-api-key", SECRET), ("x-api-key", "other")], Refused.SEVERAL),
        ([("Authorization", f"Bearer {SECRET}"), ("Authorization", "Bearer x")], Refused.SEVERAL),
        ([("Authorization", f"Bearer {SECRET.upper()}")], Refused.UNKNOWN),
        ([("Authorization", f"Bearer {SECRET} x")], Refused.UNKNOWN),
        ([("Authorization", f"Bearer {SECRET[:-1]}")], Refused.UNKNOWN),
        ([("Authorization", f"Bearer {digest(SECRET)}")], Refused.UNKNOWN),
        ([("Authorization", "Bearer schlüssel")], Refused.UNKNOWN),
        ([("Authorization", "Bearer \udcff\udc80")], Refused.UNKNOWN),
        ([("Authorization", "Bearer " + "k" * 60_000)], Refused.UNKNOWN),
    ],
)
async def test_anything_else_is_refused_with_why(keys, headers, why):
    await keys.start()
    refused = refusal(keys, head(*headers))
    assert (refused.status, refused.code) == (401, "invalid_api_key")
    assert keys.refused == {why: 1}
    assert not any(secret in refused.message for secret in (SECRET, SECRET.upper(), digest(SECRET)))


async def test_without_a_file_nobody_needs_a_key(clock):
    keys = ClientKeys(None, clock)
    await keys.start()
    await keys.run()
    assert keys.identify(head()) is None
    keys.permit(None, "anything")
    assert (keys.asked_for, keys.unread, keys.describe()) == (False, False, None)


async def test_a_key_ends_at_its_instant_without_a_look_at_the_file(keys, file, clock):
    file.write_text(table(more="expires = 1970-01-01T00:20:00Z"))
    await keys.start()
    clock.at = 1199.9
    assert keys.identify(bearer()) is not None
    clock.at = 1200.0
    refused = refusal(keys, bearer())
    assert (refused.status, refused.message) == (401, "the key team-a has expired")
    assert keys.refused == {Refused.EXPIRED: 1}


async def test_a_key_that_was_made_in_the_future_holds(keys, file):
    file.write_text(table(more="created = 2099-01-01"))
    await keys.start()
    assert keys.identify(bearer()) is not None


async def test_a_key_asks_for_its_models_alone(keys):
    client = ClientKey(name="team-a", sha256="", models=("chat", "small-*"))
    for model in ("chat", "small-8b"):
        keys.permit(client, model)
    for model, said in (
        ("large", "the key team-a may not ask for the model 'large'; it may ask for chat, small-*"),
        ("", "the key team-a may not ask for something that names no model; it may ask for chat, small-*"),
    ):
        with pytest.raises(Unfit, match="may not ask") as caught:
            keys.permit(client, model)
        assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
        assert caught.value.message == said
        assert caught.value.param == ("model" if model else "")
    with pytest.raises(Unfit) as caught:
        keys.permit(client, "m" * 100_000)
    assert len(caught.value.message) < 300
    assert keys.refused == {Refused.MODEL: 3}


# -- a file that changes ------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_after_two_looks(keys, file):
    await keys.start()
    file.write_text(table(more="revoked = 2026-01-01"))
    await settle(keys)
    assert refusal(keys, bearer()).message == "the key team-a was revoked"
    file.write_text("# nobody\n")
    await settle(keys)
    assert refusal(keys, bearer()).message == "the key of this request is not known here"
    assert keys.refused == {Refused.REVOKED: 1, Refused.UNKNOWN: 1}


async def test_looks_come_often_enough_for_three_within_a_second(file, clock):
    for poll_interval in (0.02, 0.2, 30.0):
        keys = ClientKeys(file, clock, interval=poll_interval)
        looks: list[float] = []

        async def look(looks: list[float] = looks) -> None:
            looks.append(clock.at)
            if len(looks) == 3:
                raise KeyboardInterrupt

        keys.look = look  # type: ignore[method-assign,assignment]
        began = clock.at
        with pytest.raises(KeyboardInterrupt):
            await keys.run()
        keys.close()
        assert looks[2] - began < 1.0
        assert looks[0] - began == pytest.approx(min(poll_interval, 0.3))


async def test_half_of_a_file_that_is_being_written_counts_for_nothing(keys, file):
    """Editors cut a file to nothing and write it anew; the beginning of TOML is TOML."""
    both = table() + table("b", "second")
    file.write_text(both)
    await keys.start()
    for size in (0, len(table()) + 30):
        with file.open("w") as half:
            half.write(both[:size])
        await keys.look()
        assert set(keys.keys) == {"team-a", "b"}
        assert keys.fault == ""
    file.write_text(table("b", "second"))
    await settle(keys)
    assert set(keys.keys) == {"b"}


async def test_a_file_that_never_rests_is_read_all_the_same(keys, file):
    """Somebody makes keys in a loop; nobody can put off a revocation by that."""
    await keys.start()
    await settle(keys)
    for number in range(9):
        text = table(more="revoked = true") + table("more", f"{number}")
        replacement = file.with_name("replacement")
        replacement.write_text(text)
        replacement.rename(file)
        await keys.look()
        if number >= 2:
            assert refusal(keys, bearer()).message == "the key team-a was revoked"
    assert keys.fault == ""
    await settle(keys)
    assert keys.keys["more"].sha256 == digest("8")


BROKEN = [
    ("[key.team-a\n", "is not TOML: "),
    (table(more="revokd = true"), "key team-a: no field is called 'revokd'"),
    ("\0", "is not TOML: "),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
async def test_a_broken_file_keeps_the_last_good_keys_and_says_so_once(keys, file, text, said):
    await keys.start()
    file.write_text(text)
    with capture_logs() as logs:
        for _ in range(5):
            await keys.look()
    assert keys.fault.startswith(said)
    assert keys.identify(bearer()) is not None
    assert not keys.unread
    (line,) = logs
    assert (line["event"], line["log_level"], line["keys"]) == ("keys_file.refused", "error", 1)
    file.write_text(table("b", "second"))
    await settle(keys)
    assert keys.fault == ""
    assert refusal(keys, bearer()).status == 401


async def test_a_file_that_goes_away_and_comes_back_unchanged(keys, file):
    await keys.start()
    away = file.rename(file.with_name("away"))
    await keys.look()
    assert keys.fault == "is not there"
    assert keys.identify(bearer()) is not None
    away.rename(file)
    await settle(keys)
    assert keys.fault == ""


async def test_a_file_that_turns_into_something_else(keys, file, tmp_path):
    await keys.start()
    file.unlink()
    os.mkfifo(file)
    await settle(keys)
    assert keys.fault == "is no plain file"
    file.unlink()
    file.mkdir()
    await settle(keys)
    assert keys.fault == "cannot be read: Is a directory"
    file.rmdir()
    file.symlink_to(file)
    await settle(keys)
    assert keys.fault.startswith("cannot be read: ")
    assert keys.identify(bearer()) is not None


async def test_a_link_is_followed_when_it_leads_elsewhere(keys, file, tmp_path):
    """As Kubernetes swaps mounted secrets: the link is another, the names stay."""
    for name, secret in (("one", SECRET), ("two", "second")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.toml").write_text(table(name, secret))
    file.unlink()
    (tmp_path / "data").symlink_to(tmp_path / "one")
    file.symlink_to(tmp_path / "data" / "keys.toml")
    await keys.start()
    assert set(keys.keys) == {"one"}
    (tmp_path / "next").symlink_to(tmp_path / "two")
    (tmp_path / "next").rename(tmp_path / "data")
    await settle(keys)
    assert set(keys.keys) == {"two"}


async def test_a_file_of_a_stranger_where_anyone_may_write(keys, file, monkeypatch):
    file.parent.chmod(0o777)
    monkeypatch.setattr(keyfile.os, "geteuid", lambda: 12345)
    found = os.stat(file)
    if found.st_uid == 0 or os.stat(file.parent).st_uid == found.st_uid:
        real = os.fstat

        def of_a_stranger(number: int) -> Any:
            status = list(real(number))
            status[4] = 54321
            return os.stat_result(status)

        monkeypatch.setattr(keyfile.os, "fstat", of_a_stranger)
    await keys.start()
    assert keys.fault == "belongs to user 54321, and anyone may write to its directory"
    assert keys.unread


async def test_the_same_size_and_time_do_not_hide_a_change(keys, file):
    await keys.start()
    await settle(keys)
    before = os.stat(file)
    file.write_text(table(secret="sk-orch-two-secret-of-a-client"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    await settle(keys)
    assert refusal(keys, bearer()).status == 401


# -- no file at the start -----------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, *(text for text, _ in BROKEN)])
async def test_without_a_file_at_the_start_everybody_is_refused_until_it_comes(keys, file, text):
    file.unlink()
    if text is not None:
        file.write_text(text)
    await keys.start()
    assert keys.unread
    assert keys.fault
    refused = refusal(keys, bearer())
    assert (refused.status, refused.code) == (503, "keys_unread")
    assert str(file) not in refused.message
    file.write_text(table())
    await settle(keys)
    assert not keys.unread
    assert keys.identify(bearer()) is not None
    assert keys.refused == {Refused.UNREAD: 1}


async def test_a_disk_that_hangs_keeps_the_keys_and_holds_up_nobody(keys, file, monkeypatch):
    import threading

    await keys.start()
    hangs = threading.Event()
    real = keyfile.read_keys
    monkeypatch.setattr(keyfile, "_PATIENCE", 0.05)
    monkeypatch.setattr(keyfile, "read_keys", lambda data: hangs.wait(30) and real(data))
    await settle(keys)
    assert keys.fault == "does not answer within 0.05 s"
    assert keys.identify(bearer()) is not None
    hangs.set()
    monkeypatch.setattr(keyfile, "_PATIENCE", 20.0)
    await settle(keys)
    assert keys.fault == ""


async def test_a_fault_of_ours_does_not_end_the_looks(keys, clock, monkeypatch):
    looks = []

    async def look() -> None:
        looks.append(clock.at)
        raise KeyboardInterrupt if len(looks) == 3 else RuntimeError("planted")

    monkeypatch.setattr(keys, "look", look)
    with capture_logs() as logs, pytest.raises(KeyboardInterrupt):
        await keys.run()
    assert [line["event"] for line in logs] == ["keys_file.check_failed"] * 2


async def test_what_is_said_of_the_file(keys, file, clock):
    file.write_text(table() + table("b", "2", "revoked = true") + table("c", "3", "expires = 1970-01-01"))
    await keys.start()
    assert keys.describe() == {
        "file": str(file), "fault": "", "read_at": clock.at, "valid": 1, "expired": 1, "revoked": 1
    }  # fmt: skip
