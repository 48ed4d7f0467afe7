"""Ids of stored things are learnt from answers, and the oldest are forgotten first."""

from __future__ import annotations

import json

import pytest

from orchestrator.gateway.asked import ask
from orchestrator.gateway.dialects.stored import Stored, ids_in

RESPONSES = ask("POST", "/v1/responses", "application/json", b"{}")
FILES = ask("POST", "/v1/files", "multipart/form-data", b"")


@pytest.mark.parametrize(
    ("asked", "answer", "ids"),
    [
        (RESPONSES, {"id": "resp_1", "previous_response_id": "resp_0"}, ["resp_1"]),
        (FILES, {"id": "file-1", "object": "file"}, ["file-1"]),
        (
            ask("POST", "/v1/batches", "application/json", b"{}"),
            {"id": "b", "input_file_id": "i", "output_file_id": "o", "error_file_id": None},
            ["b", "i", "o"],
        ),
        (ask("GET", "/v1/files/x", "", b""), {"data": [{"id": "a"}, {"id": "b"}, 7]}, ["a", "b"]),
        (ask("POST", "/v1/chat/completions", "application/json", b"{}"), {"id": "chatcmpl-1"}, []),
        (FILES, [1], []),
        (FILES, {"id": ""}, []),
        (FILES, {"id": 7}, []),
    ],
)
def test_ids_are_found_in_answers(asked, answer, ids):
    assert ids_in(asked, json.dumps(answer).encode()) == ids


def test_bytes_that_are_no_json_tell_no_id():
    assert ids_in(FILES, b"\x00\x01 the content of a file") == []


def test_the_node_that_made_a_thing_is_known():
    stored = Stored()
    stored.learn("n1", RESPONSES, b'{"id": "resp_1"}')
    stored.note("n2", "resp_2")
    assert [stored.node_of(name) for name in ("resp_1", "resp_2", "resp_3")] == ["n1", "n2", None]
    stored.note("n3", "resp_1")
    assert stored.node_of("resp_1") == "n3"


def test_the_id_longest_unused_is_forgotten_first():
    stored = Stored(limit=3)
    for name in ("a", "b", "c"):
        stored.note("n", name)
    assert stored.node_of("a") == "n"
    stored.note("n", "d")
    assert len(stored) == 3
    assert [stored.node_of(name) for name in ("a", "b", "c", "d")] == ["n", None, "n", "n"]
