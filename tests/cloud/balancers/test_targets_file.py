"""The targets file: what was written is believed, what was damaged or put there by others is not."""

from __future__ import annotations

import contextlib
import json
import os

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.balancers import targets_file as files
from cloud.balancers.targets import MAX_BYTES, TargetsError, TargetSet, encode
from cloud.durable import write_atomic
from cloud.errors import Denied
from policies.model import TargetPhase, TargetSpec

A = TargetSpec(id="a", address="10.0.0.5:8000")
B = TargetSpec(id="b", address="10.0.0.6:8000", phase=TargetPhase.DRAINING, drain_deadline=1764000115.25)


def a_set(generation=7, *targets, pool="chat"):
    return TargetSet(generation=generation, pool=pool, written_at=1764000000.1, targets=targets or (A, B))


SEALED = files.seal(a_set())


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "targets.json"
    files.write(path, a_set())
    assert files.read(path) == files.read(files.copy_of(path)) == a_set()
    assert orjson.loads(path.read_bytes())["set"] == orjson.loads(encode(a_set()))


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_no_changed_byte_makes_another_set(place, change):
    damaged = bytearray(SEALED)
    damaged[place] ^= change
    with contextlib.suppress(TargetsError):
        assert files.unseal(bytes(damaged)) == a_set()  # white space for white space


@given(st.integers(0, len(SEALED) - 2))
def test_no_part_is_taken_for_the_whole(length):
    with pytest.raises(TargetsError):
        files.unseal(SEALED[:length])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            SEALED.replace(b"10.0.0.5", b"10.0.0.4"),
            "its checksum is wrong: it was damaged, or changed by hand",
        ),
        (SEALED.replace(b'"weight":100', b'"weight":900', 1), "its checksum is wrong"),
        (SEALED.replace(b"targets-file/1", b"targets-file/2"), "no 'targets-file/1' document"),
        (SEALED.replace(b'"sha256"', b'"md5"'), "no 'targets-file/1' document"),
        (SEALED.replace(b'"set"', b'"sets"'), "no 'targets-file/1' document"),
        (b"", "not JSON"),
        (b"\0" * len(SEALED), "not JSON"),
        (b'{"set":' + b"[" * 500 + b"]" * 500 + b',"schema":"targets-file/1","sha256":""}', "no target set"),
        (b'{"set":' + b"[" * 5000, "not JSON"),
        (b'{"schema":"something/1"}', "missing generation"),
    ],
)
def test_what_was_not_written_by_a_daemon_is_refused(data, says):
    with pytest.raises(TargetsError, match=says):
        files.unseal(data)


def test_spaces_change_nothing():
    assert files.unseal(json.dumps(json.loads(SEALED), indent=2).encode()) == a_set()


def test_a_file_of_the_version_before_is_read():
    assert files.unseal(encode(a_set())) == a_set()


def test_a_link_is_refused_and_replaced(tmp_path):
    path, elsewhere = tmp_path / "targets.json", tmp_path / "elsewhere"
    write_atomic(elsewhere, files.seal(a_set(9)))
    path.symlink_to(elsewhere)
    with pytest.raises(TargetsError, match="symbolic link"):
        files.read(path)
    files.write(path, a_set(8))
    assert files.read(path) == a_set(8)
    assert files.read(elsewhere) == a_set(9)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "targets.json")
    with pytest.raises(TargetsError, match="no plain file"):
        files.read(tmp_path / "targets.json")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "targets.json"
    path.touch()
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(TargetsError, match="a target set has at most"):
        files.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_strangers_file_is_refused_where_anyone_may_write(tmp_path):
    path = tmp_path / "targets.json"
    files.write(path, a_set())
    os.chown(path, 12345, 12345)
    assert files.read(path) == a_set()
    tmp_path.chmod(0o1777)
    with pytest.raises(TargetsError, match="belongs to user 12345, and anyone may write to"):
        files.read(path)


def test_a_newer_set_in_either_copy_is_another_daemons(tmp_path):
    path = tmp_path / "targets.json"
    files.write(path, a_set(9))
    for damaged, whole in ((path, files.copy_of(path)), (files.copy_of(path), path)):
        damaged.write_bytes(b"x")
        with pytest.raises(Denied, match="another daemon leads"):
            files.write(path, a_set(8))
        assert files.read(whole) == a_set(9)
        files.write(path, a_set(9))
        assert files.read(damaged) == a_set(9)


def test_another_pools_file_is_not_overwritten(tmp_path):
    path = tmp_path / "targets.json"
    files.write(path, a_set(2, pool="other"))
    with pytest.raises(Denied, match="holds the set of pool 'other', not of 'chat': give each pool"):
        files.write(path, a_set(8))
    assert files.read(path).pool == "other"


def test_what_holds_the_set_already_is_left_alone(tmp_path):
    path = tmp_path / "targets.json"
    files.write(path, a_set())
    before = files.stamp(path), files.stamp(files.copy_of(path))
    files.write(path, a_set())
    assert (files.stamp(path), files.stamp(files.copy_of(path))) == before
