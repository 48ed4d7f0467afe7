"""Error shapes and the last event of a broken stream, as the clients' own libraries read them."""

from __future__ import annotations

import json

import anthropic
import httpx2 as httpx
import openai
import pytest

from orchestrator.gateway.asked import ask
from orchestrator.gateway.dialects import Same
from orchestrator.gateway.dialects.errors import anthropic_error, cohere_error, openai_error
from orchestrator.gateway.dialects.table import ROWS
from orchestrator.gateway.failure import Failure

CHUNK = b'data: {"id":"c","object":"chunk","created":1,"model":"m","choices":[{"index":0,%s}]}\n\n'
DELTA = b'{"type":"response.output_text.delta","delta":"x"}'
FIRST = {
    "chat": CHUNK % b'"delta":{"content":"x"},"finish_reason":null',
    "completions": CHUNK % b'"text":"x","finish_reason":null',
    "responses": b"event: response.output_text.delta\ndata: " + DELTA + b"\n\n",
}


def answering(status: int, body: bytes, kind: str = "application/json") -> openai.OpenAI:
    transport = httpx.MockTransport(
        lambda _: httpx.Response(status, content=body, headers={"content-type": kind})
    )
    return openai.OpenAI(api_key="k", max_retries=0, http_client=httpx.Client(transport=transport))


def events(client: openai.OpenAI, name: str):
    if name == "chat":
        return client.chat.completions.create(model="m", messages=[], stream=True)
    if name == "completions":
        return client.completions.create(model="m", prompt="p", stream=True)
    return client.responses.create(model="m", input="p", stream=True)


@pytest.mark.parametrize("name", sorted(FIRST))
def test_a_broken_stream_raises_in_the_clients_library(name):
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}[
        name
    ]
    edge = ROWS[path].edge(ask("POST", path, "application/json", b"{}"))
    last = edge.interrupted(request_id="r-1", failure=Failure.DISCONNECTED, detail="gone", tokens=7)
    client = answering(200, FIRST[name] + last, "text/event-stream")
    seen = []
    with pytest.raises(
        openai.APIError, match=r"interrupted and the answer is not complete \(disconnected: gone\)"
    ):
        seen.extend(events(client, name))
    assert len(seen) == 1


def test_errors_have_the_shape_that_openai_clients_read():
    client = answering(404, openai_error(404, "not_found", "no such path", "r-1", "model"))
    with pytest.raises(openai.NotFoundError, match="no such path") as raised:
        client.models.list()
    assert (raised.value.code, raised.value.param, raised.value.type) == (
        "not_found",
        "model",
        "invalid_request_error",
    )
    assert json.loads(openai_error(503, "queue_full", "m", "r"))["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_have_the_shape_that_anthropic_clients_read(status, kind):
    body = anthropic_error(status, "some_code", "words", "r-1", "messages")
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    client = anthropic.Anthropic(
        api_key="k", max_retries=0, http_client=anthropic.DefaultHttpxClient(transport=transport)
    )
    with pytest.raises(anthropic.APIStatusError) as raised:
        client.messages.create(model="m", max_tokens=1, messages=[])
    told = raised.value.body
    assert told["error"] == {"type": kind, "message": "some_code: words", "param": "messages"}
    assert told["request_id"] == "r-1"


def test_errors_for_cohere_clients_have_their_message_at_the_top():
    told = json.loads(cohere_error(400, "bad_json", "words", "r-1"))
    assert (told["message"], told["error"]["code"], told["error"]["request_id"]) == (
        "words",
        "bad_json",
        "r-1",
    )


@pytest.mark.parametrize("path", ["/v2/rerank", "/v2/embed"])
def test_coheres_paths_have_coheres_shape(path):
    assert "message" in json.loads(ROWS[path].error(400, "c", "m", "r"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "words", "code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"message": "words", "code": 400}, "engine_error"),
        ("words", "engine_error"),
    ],
)
def test_an_engines_error_is_where_coheres_clients_look(error, code):
    told = json.loads(Same(cohere_error).failed(400, json.dumps({"error": error}).encode(), "r-1"))
    assert (told["message"], told["error"]["message"], told["error"]["code"]) == ("words", "words", code)


@pytest.mark.parametrize("body", [b'{"error":"Unauthorized"}', b'{"error":{"code":1}}'])
def test_an_engines_own_json_error_stays_as_it_is(body):
    assert Same().failed(401, body, "r") is body


@pytest.mark.parametrize(
    "body",
    [b"Internal Server Error", b'{"detail":"Not Found"}', b"", b"[1]", b"\xff\xfe", b"<html>" + b"x" * 9000],
)
def test_an_engines_error_without_an_error_in_it_gets_the_clients_shape(body):
    told = json.loads(Same().failed(500, body, "r-1"))["error"]
    assert (told["code"], told["request_id"], told["type"]) == ("engine_error", "r-1", "server_error")
    assert 0 < len(told["message"]) <= 500
