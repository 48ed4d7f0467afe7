import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from cloud import tombstones
from cloud.errors import Denied
from cloud.ports import EngineCommand, LaunchRequest
from cloud.tombstones import Stage, Tombstones
from policies.model import Market, Placement, StandbyKind
from tests.support.hand_clock import HandClock

PLACE = Placement("gcp", "us-central1", "us-central1-a", "g2-standard-4", Market.SPOT)


def request(token: str, **changes) -> LaunchRequest:
    asked = LaunchRequest(token=token, pool="llama", placement=PLACE, command=EngineCommand(argv=("engine",)))
    return replace(asked, **changes)


@pytest.fixture
def clock():
    return HandClock(1000.0)


@pytest.fixture
def ledger(tmp_path, clock):
    return Tombstones(tmp_path / "state" / "ledger", clock)


def again(ledger, clock):
    return Tombstones(ledger._path, clock)


def test_what_was_asked_for_is_there_after_a_restart_with_all_that_an_answer_needs(ledger, clock):
    asked = ledger.ask(request("a/1", standby=StandbyKind.STOPPED), "n1")
    assert (asked.stage, asked.attempt, asked.first) == (Stage.ASKED, 0, 1000.0)
    found = again(ledger, clock)
    assert found.find("a/1") == asked
    assert found.named("n1") == asked
    assert found.entries("llama") == (asked,)
    assert (asked.placement, asked.standby, asked.pool) == (PLACE, StandbyKind.STOPPED, "llama")
    assert found.find("a/2") is None
    assert found.named("n2") is None
    assert found.entries("other") == ()


def test_a_token_is_asked_for_once_until_it_was_refused(ledger, clock):
    first = ledger.ask(request("a"), "n")
    clock.at += 5
    assert ledger.ask(request("a"), "n") == first
    ledger.note("a", Stage.REFUSED)
    second = ledger.ask(request("a"), "n")
    assert (second.stage, second.attempt, second.first, second.at) == (Stage.ASKED, 1, 1005.0, 1005.0)
    assert ledger.note("a", Stage.MADE, "77").machine == "77"
    assert ledger.ask(request("a"), "n").stage is Stage.MADE


def test_a_token_of_unknown_outcome_is_asked_for_anew(ledger, clock):
    ledger.ask(request("a"), "n")
    clock.at += 60
    second = ledger.ask_again("a")
    assert (second.stage, second.attempt, second.first, second.at) == (Stage.ASKED, 1, 1060.0, 1060.0)
    assert again(ledger, clock).find("a") == second
    with pytest.raises(KeyError):
        ledger.ask_again("never")


@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_a_file_that_is_lost_under_a_process_is_written_anew(ledger, clock, damage):
    ledger.ask(request("a"), "n1")
    made = ledger.note("a", Stage.MADE, "7")
    if damage == "removed":
        ledger._path.unlink()
    else:
        ledger._path.write_bytes(b"")
    assert ledger.entries("llama") == (made,)
    ledger.ask(request("b"), "n2")
    assert {entry.token for entry in again(ledger, clock).entries("llama")} == {"a", "b"}


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([Stage.MADE, Stage.REFUSED], Stage.MADE),
        ([Stage.REFUSED, Stage.MADE], Stage.MADE),
        ([Stage.MADE, Stage.ENDED, Stage.MADE], Stage.ENDED),
        ([Stage.ENDED, Stage.REFUSED], Stage.ENDED),
        ([Stage.REFUSED, Stage.ENDED], Stage.ENDED),
    ],
)
def test_a_machine_that_was_made_is_never_forgotten(ledger, clock, steps, left):
    ledger.ask(request("a"), "n")
    for step in steps:
        ledger.note("a", step)
    assert ledger.find("a").stage is left
    assert again(ledger, clock).find("a").stage is left


def test_what_is_known_already_is_not_written_again(ledger):
    ledger.ask(request("a"), "n")
    ledger.note("a", Stage.MADE, "7")
    size = ledger._path.stat().st_size
    ledger.note("a", Stage.MADE, "7")
    ledger.note("a", Stage.MADE)
    assert ledger._path.stat().st_size == size
    with pytest.raises(KeyError):
        ledger.note("never", Stage.MADE)


@pytest.mark.parametrize("left", [1, 9, 40, -2])
def test_a_torn_last_line_is_cut_off_and_hides_nothing(ledger, clock, left):
    ledger.ask(request("a"), "n1")
    size = ledger._path.stat().st_size
    ledger.ask(request("b"), "n2")
    whole = ledger._path.read_bytes()
    ledger._path.write_bytes(whole[: size + left] if left > 0 else whole[:left])
    found = again(ledger, clock)
    assert found.find("a") is not None
    assert found.find("b") is None
    assert found.damaged == 0
    found.ask(request("c"), "n3")
    last = again(ledger, clock)
    assert {entry.token for entry in last.entries("llama")} == {"a", "c"}
    assert last.damaged == 0


def test_a_damaged_line_hides_itself_alone_and_is_counted(ledger, clock):
    for token in "abc":
        ledger.ask(request(token), f"name-{token}")
    lines = ledger._path.read_bytes().splitlines(keepends=True)
    ledger._path.write_bytes(lines[0] + lines[1].replace(b"name-b", b"name-x") + b"\0\n" + lines[2])
    found = again(ledger, clock)
    assert {entry.token for entry in found.entries("llama")} == {"a", "c"}
    assert found.damaged == 2


def full_disk(monkeypatch, takes):
    real = os.pwrite

    def pwrite(handle, data, offset):
        if takes is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[:takes], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("takes", [None, 0, 11])
def test_on_a_full_disk_nothing_may_be_launched_and_the_error_says_why(ledger, clock, monkeypatch, takes):
    ledger.ask(request("a"), "n1")
    before = ledger._path.read_bytes()
    with monkeypatch.context() as patched:
        full_disk(patched, takes)
        with pytest.raises(
            Denied, match=r"ledger of launches .*No space left on device; nothing is launched"
        ):
            ledger.ask(request("b"), "n2")
        assert ledger.find("b") is None
    assert ledger._path.read_bytes() == before
    ledger.ask(request("b"), "n2")
    assert {entry.token for entry in again(ledger, clock).entries("llama")} == {"a", "b"}


def test_a_line_that_is_not_on_disk_for_certain_counts_for_nothing(ledger, clock, monkeypatch):
    with monkeypatch.context() as patched:

        def fails(_handle):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        ledger.find("a")
        patched.setattr(os, "fsync", fails)
        with pytest.raises(Denied, match="Input/output error"):
            ledger.ask(request("a"), "n1")
    assert ledger.find("a") is None
    assert again(ledger, clock).find("a") is None


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, clock):
    (tmp_path / "file").write_text("")
    with pytest.raises(Denied, match="ledger of launches"):
        Tombstones(tmp_path / "file" / "ledger", clock).ask(request("a"), "n")


def test_two_processes_see_each_others_lines(ledger, clock):
    other = again(ledger, clock)
    mine = ledger.ask(request("a"), "n1")
    assert other.ask(request("a"), "n1") == mine
    other.note("a", Stage.MADE, "7")
    assert ledger.find("a").machine == "7"


def test_what_is_old_goes_when_the_file_is_written_anew_and_another_process_follows(
    ledger, clock, monkeypatch
):
    other = again(ledger, clock)
    ledger.ask(request("old"), "n0")
    assert other.find("old") is not None
    clock.at += tombstones.KEPT + 1
    ledger.ask(request("new"), "n1")
    ledger.note("new", Stage.MADE, "7")
    monkeypatch.setattr(tombstones, "_LARGE", 10)
    ledger.ask(request("newer"), "n2")
    for one in (ledger, other, again(ledger, clock)):
        assert one.find("old") is None
        assert one.named("n0") is None
        assert one.find("new").stage is Stage.MADE
        assert one.find("newer") is not None


_WRITER = """
import sys
from pathlib import Path
from cloud.clock import SystemClock
from cloud.tombstones import Stage, Tombstones
from tests.cloud.test_tombstones import request
ledger = Tombstones(Path(sys.argv[1]), SystemClock())
for number in range(100_000):
    token = f"{sys.argv[2]}/{number}"
    ledger.ask(request(token), f"n-{sys.argv[2]}-{number}")
    print("asked", token, flush=True)
    ledger.note(token, Stage.MADE, str(number))
    print("made", token, flush=True)
"""


@pytest.mark.slow
def test_no_line_that_was_answered_for_is_lost_by_a_kill_of_two_writers_at_any_instant(tmp_path, clock):
    path, said = tmp_path / "ledger", {}
    for turn, lines in enumerate((1, 2, 7, 20, 41)):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(path), f"{turn}{who}"], stdout=subprocess.PIPE, text=True
            )
            for who in "ab"
        ]
        for writer in writers:
            for _ in range(lines):
                word, token = writer.stdout.readline().split()
                said[token] = Stage(word)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            for line in writer.communicate()[0].splitlines():
                if len(parts := line.split()) == 2 and parts[0] in ("asked", "made"):
                    said.setdefault(parts[1], Stage.ASKED)
    found = Tombstones(path, clock)
    for token, stage in said.items():
        entry = found.find(token)
        assert entry is not None, token
        assert stage is Stage.ASKED or entry.stage is Stage.MADE
    assert found.damaged == 0
