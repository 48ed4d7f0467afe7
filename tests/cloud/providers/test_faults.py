"""Whose trouble an error answer is, how long to wait, and what the client is told."""

from __future__ import annotations

import json
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.providers.wire import Blame, read_fault

NOW = 1_800_000_000.0


def anthropic(kind: str, text: str) -> bytes:
    error = {"type": kind, "message": text}
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


def openai(code: str | None, text: str) -> bytes:
    error = {"message": text, "type": "invalid_request_error", "param": "top_k", "code": code}
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "body", "blame"),
    [
        (429, anthropic("rate_limit_error", "slow down"), Blame.BUSY),
        (503, b"", Blame.BUSY),
        (529, anthropic("overloaded_error", "Overloaded"), Blame.BUSY),
        (500, anthropic("api_error", "Internal server error"), Blame.FAILED),
        (502, b"<html>Bad gateway</html>", Blame.FAILED),
        (504, b"", Blame.FAILED),
        (408, b"", Blame.FAILED),
        (302, b"", Blame.FAILED),
        (401, anthropic("authentication_error", "invalid x-api-key"), Blame.ACCOUNT),
        (402, anthropic("billing_error", "no payment"), Blame.ACCOUNT),
        (403, anthropic("permission_error", "no"), Blame.ACCOUNT),
        (404, anthropic("not_found_error", "model: claude-9"), Blame.ACCOUNT),
        (404, openai("model_not_found", "The model `x` does not exist"), Blame.ACCOUNT),
        (429, openai("insufficient_quota", "You exceeded your current quota"), Blame.ACCOUNT),
        (
            400,
            anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
            Blame.ACCOUNT,
        ),
        (400, anthropic("invalid_request_error", "messages.0: billing is no role"), Blame.REQUEST),
        (400, openai("context_length_exceeded", "too long"), Blame.REQUEST),
        (413, anthropic("request_too_large", "too large"), Blame.REQUEST),
        (422, b'{"detail":"no"}', Blame.REQUEST),
        (418, b"", Blame.REQUEST),
    ],
)
def test_whose_trouble_it_is(status, body, blame):
    assert read_fault(status, {}, body, NOW).blame is blame


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"Retry-After": "-7"}, 0),
        ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, 30),
        ({"Retry-After": formatdate(NOW + 30)}, 30),  # "-0000": of no zone, which is UTC
        ({"Retry-After": formatdate(NOW - 30, usegmt=True)}, 0),
        ({"Retry-After-Ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Fri, 99 Foo 2026 99:99:99 GMT"}, None),
    ],
)
def test_how_long_to_wait(headers, seconds):
    assert read_fault(429, headers, b"", NOW).retry_after == seconds


def test_an_error_of_anthropics_becomes_openais():
    fault = read_fault(400, {}, anthropic("invalid_request_error", "max_tokens: too many"), NOW)
    assert json.loads(fault.body) == {
        "error": {
            "message": "max_tokens: too many",
            "type": "invalid_request_error",
            "param": None,
            "code": 400,
        }
    }
    assert fault.text == "invalid_request_error: max_tokens: too many"


def test_an_error_of_openais_stays():
    body = openai("context_length_exceeded", "too long")
    assert read_fault(400, {}, body, NOW).body == body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "no reason given"),
        (b"<html>\n  Bad\n gateway", "<html> Bad gateway"),
        (b'{"error": "plain words"}', "plain words"),
        (b'{"detail": "no such route"}', '{"detail": "no such route"}'),
        (b"x" * 5_000, "x" * 300),
    ],
)
def test_words_of_any_shape(body, text):
    fault = read_fault(500, {}, body, NOW)
    assert fault.text == text
    assert json.loads(fault.body)["error"]["message"] == text


@given(st.integers(100, 599), st.dictionaries(st.text(max_size=12), st.text(max_size=30)), st.binary())
def test_no_answer_raises(status, headers, body):
    assert read_fault(status, {**headers, "Retry-After": "".join(headers)}, body, NOW).text
