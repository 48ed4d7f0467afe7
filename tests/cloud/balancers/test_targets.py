"""The target set document: strict to read, exact to write, atomic on disk."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.balancers.targets import WITHOUT_BUILDS, TargetsError, TargetSet, encode, parse, write_atomic
from policies.model import TargetPhase, TargetSpec

ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
times = st.floats(min_value=0, max_value=4e9)
addresses = st.builds(
    "{}:{}".format, st.sampled_from(["10.0.0.5", "node-1", "[fd00::5]"]), st.integers(1, 65535)
)
builds = st.just("") | ids


def specs(build):
    active = st.builds(TargetSpec, id=ids, address=addresses, weight=st.integers(0, 65535), build=build)
    return active | st.builds(
        TargetSpec,
        id=ids,
        address=addresses,
        phase=st.just(TargetPhase.DRAINING),
        drain_deadline=st.none() | times,
        build=build,
    )


def documents_of(schema, build):
    return st.builds(
        TargetSet,
        generation=st.integers(0, 2**53),
        pool=st.text(min_size=1, max_size=20),
        written_at=times,
        targets=st.lists(specs(build), max_size=8, unique_by=lambda spec: spec.id).map(tuple),
        schema=st.just(schema),
    )


documents = documents_of("targets/2", builds) | documents_of("targets/1", st.just(""))


@given(documents)
def test_what_is_written_is_read_back(document):
    assert parse(encode(document)) == document


def good():
    target = {
        "id": "i-1",
        "address": "10.0.0.5:8000",
        "phase": "active",
        "weight": 100,
        "drain_deadline": None,
        "build": "8f3a",
    }
    return {"schema": "targets/2", "generation": 7, "pool": "chat", "written_at": 1.5, "targets": [target]}


def test_the_documented_form_is_read():
    document = parse(json.dumps(good()).encode())
    assert document.targets == (TargetSpec(id="i-1", address="10.0.0.5:8000", build="8f3a"),)
    assert (document.generation, document.pool, document.written_at) == (7, "chat", 1.5)


def old():
    body = good() | {"schema": "targets/1"}
    del body["targets"][0]["build"]
    return body


def test_the_form_before_is_read_and_says_of_no_target_what_it_runs():
    document = parse(json.dumps(old()).encode())
    assert document.targets == (TargetSpec(id="i-1", address="10.0.0.5:8000"),)
    assert document.schema == WITHOUT_BUILDS


def test_the_form_before_is_written_as_the_version_before_reads_it():
    document = parse(json.dumps(old()).encode())
    assert json.loads(encode(document)) == old()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (old() | {"schema": "targets/2"}, r"targets\[0\]: missing build"),
        (good() | {"schema": "targets/1"}, r"targets\[0\]: unknown build"),
    ],
    ids=["none in 2", "one in 1"],
)
def test_each_form_has_its_own_keys_and_no_others(body, says):
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(body).encode())


def test_a_build_that_the_form_cannot_say_is_not_dropped():
    spec = TargetSpec(id="a", address="10.0.0.5:8000", build="8f3a")
    document = TargetSet(generation=1, pool="p", written_at=1.0, targets=(spec,), schema=WITHOUT_BUILDS)
    with pytest.raises(TargetsError, match=r"targets\[0\].build: '8f3a': 'targets/1' has none"):
        encode(document)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("schema", "targets/3", "schema: 'targets/3': this version reads 'targets/1' and 'targets/2'"),
        ("schema", ["targets/2"], "schema: "),
        ("generation", -1, "generation: -1: expected a whole number"),
        ("generation", 1.5, "generation: 1.5"),
        ("generation", True, "generation: True"),
        ("pool", "", "pool: ''"),
        ("pool", 5, "pool: 5"),
        ("written_at", "now", "written_at: 'now': expected seconds"),
        ("targets", {}, "targets: dict: expected a list"),
        ("targets", [5], r"targets\[0\]: int: expected an object"),
    ],
)
def test_a_wrong_field_is_named(field, value, says):
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(good() | {field: value}).encode())


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("id", "", r"targets\[0\].id: ''"),
        ("id", "a b", "no spaces"),
        ("id", "x" * 129, "1 to 128"),
        ("address", "10.0.0.5", "expected host:port"),
        ("address", "10.0.0.5:0", "expected host:port"),
        ("address", "10.0.0.5:65536", "expected host:port"),
        ("address", ":80", "expected host:port"),
        ("address", "fd00::5:80", "expected host:port"),
        ("address", "user@host:80", "expected host:port"),
        ("address", "host/path:80", "expected host:port"),
        ("address", 80, "expected host:port"),
        ("phase", "absent", "'absent': expected one of active, draining"),
        ("weight", -1, "weight: -1"),
        ("weight", 1.0, "weight: 1.0"),
        ("drain_deadline", 5.0, "only a draining target has one"),
        ("drain_deadline", "soon", "drain_deadline: 'soon'"),
        ("build", None, "build: None: expected up to 128 printable"),
        ("build", 5, "build: 5"),
        ("build", "a b", "build: 'a b'"),
        ("build", "x" * 129, "build: 'xxx"),
        ("build", "a\n", "build: 'a"),
        ("build", ["a"], "expected plain values only"),
    ],
)
def test_a_wrong_field_of_a_target_is_named_with_its_place(field, value, says):
    body = good()
    body["targets"][0][field] = value
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "target set: list: expected an object"),
        (b"{}", "missing generation, pool, schema, targets, written_at"),
        (b'{"generation": NaN}', "not JSON"),
    ],
)
def test_what_is_no_document_is_refused(data, says):
    with pytest.raises(TargetsError, match=says):
        parse(data)


def test_unknown_keys_and_repeated_ids_are_refused():
    with pytest.raises(TargetsError, match="unknown color"):
        parse(json.dumps(good() | {"color": "red"}).encode())
    body = good()
    body["targets"] *= 2
    with pytest.raises(TargetsError, match="id 'i-1' is listed twice"):
        parse(json.dumps(body).encode())


def test_a_document_that_could_not_be_read_is_not_written():
    bad = TargetSet(generation=1, pool="p", written_at=1.0, targets=(TargetSpec(id="a", address="nowhere"),))
    with pytest.raises(TargetsError, match=r"targets\[0\].address: 'nowhere'"):
        encode(bad)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "targets.json"
    write_atomic(path, b"one")
    inode = path.stat().st_ino
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != inode
    assert [entry.name for entry in tmp_path.iterdir()] == ["targets.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "targets.json"
    write_atomic(path, b"one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["targets.json"]


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "targets.json", b"")
