"""Reading a request: which paths are served, as which dialect, and what the body asks for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.asked import Unfit, ask
from orchestrator.gateway.dialects.table import CLOSED, FAMILIES, ROWS, row_of

JSON = "application/json"


def asked(path: str, fields: object, method: str = "POST"):
    return ask(method, path, JSON, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/v1/%63hat/completions", "chat"),
        ("GET", "/v1/chat/completions", "other"),
        ("POST", "/v1/completions", "completions"),
        ("POST", "/v1/embeddings", "embeddings"),
        ("POST", "/v2/embed", "embeddings"),
        ("POST", "/v1/responses", "responses"),
        ("GET", "/v1/responses/resp_1", "responses"),
        ("POST", "/v1/responses/resp_1/cancel", "responses"),
        ("POST", "/v1/messages", "messages"),
        ("POST", "/v1/messages/count_tokens", "count_tokens"),
        ("POST", "/rerank", "rerank"),
        ("POST", "/v1/rerank", "rerank"),
        ("POST", "/v2/rerank", "rerank"),
        ("POST", "/score", "score"),
        ("POST", "/v1/score", "score"),
        ("POST", "/pooling", "pooling"),
        ("POST", "/classify", "classify"),
        ("POST", "/tokenize", "tokenize"),
        ("POST", "/detokenize", "tokenize"),
        ("POST", "/v1/audio/transcriptions", "audio"),
        ("POST", "/v1/images/generations", "images"),
        ("POST", "/v1/files", "files"),
        ("GET", "/v1/files/f-1/content", "files"),
        ("POST", "/v1/batches", "batches"),
        ("POST", "/v1/batches/b-1/cancel", "batches"),
        ("GET", "/v1/models", "other"),
        ("GET", "/v1/models/org%20x", "other"),
        ("GET", "/health", "other"),
    ],
)
def test_paths_served(method, path, name):
    assert row_of(method, path, ("/health",)).name == name


ADMIN = [
    "/inference/v1/generate", "/inference/v1/abort_requests", "/v1/chat/completions/render",
    "/v1/completions/render", "/v1/responses/render", "/v1/messages/render", "/v1/completions/derender",
    "/v1/chat/completions/derender", "/cohere/v2/chat/render", "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter", "/tokenizer_info", "/pause", "/resume", "/is_paused", "/sleep", "/wake_up",
    "/is_sleeping", "/collective_rpc", "/server_info", "/abort_requests", "/reset_prefix_cache",
    "/reset_mm_cache", "/update_weights", "/weight_info", "/scale_elastic_ep", "/fault_tolerance/apply",
    "/start_profile", "/get_world_size",
]  # fmt: skip


@pytest.mark.parametrize("path", ADMIN)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_admin_routes_are_never_served(method, path):
    letter = path[-1]
    forms = [
        path,
        path[:-1] + f"%{ord(letter):02x}",
        path[:-1] + f"%25{ord(letter):02x}",
        path.replace("/", "%2f")[3:],
        "/" + path,
        path + "/",
        "/v1/." + path,
        "/v1/models/.." + path,
        "/v1/models/%2e%2e" + path,
        path + "#/v1/models",
        path + "%23",
        path + "\\",
        path + "/x",
    ]
    for form in forms:
        with pytest.raises(Unfit) as refused:
            row_of(method, form, ("/health", form))
        assert (refused.value.status, refused.value.code) == (404, "not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/health/",
        "/healthx",
        "v1/completions",
        "http://x/v1/completions",
        "*",
        "",
        "/",
        "/V1/completions",
        "/v1",
        "/v1/",
        "/v1/a/",
        "/v2/models",
        "/invocations",
        "/metrics",
        "/docs",
        "/openapi.json",
    ],
)
def test_paths_not_served(path):
    with pytest.raises(Unfit):
        row_of("GET", path, ("/health",))


def test_no_row_is_closed():
    for path in [*ROWS, *(family + "x" for family, _ in FAMILIES)]:
        assert not CLOSED.intersection(path.split("/"))


@given(st.text(max_size=40))
def test_any_path_is_served_or_refused_with_404(path):
    try:
        status = 200 if row_of("POST", "/v1/" + path).name else 0
    except Unfit as unfit:
        status = unfit.status
    assert status in (200, 404)


@pytest.mark.parametrize(
    ("path", "fields", "stream", "choices"),
    [
        ("/v1/chat/completions", {}, False, 1),
        ("/v1/chat/completions", {"stream": True}, True, 1),
        ("/v1/chat/completions", {"stream": "true", "n": "2"}, True, 2),
        ("/v1/chat/completions", {"stream": 1, "n": 3}, True, 3),
        ("/v1/chat/completions", {"stream": True, "n": None}, True, 1),
        ("/v1/chat/completions", {"metadata": {"stream": True, "n": 2}}, False, 1),
        ("/v1/chat/completions", {"stream": [True], "n": True}, False, 1),
        ("/v1/chat/completions/batch", {"messages": [[{}], [{}]]}, False, 2),
        ("/v1/completions", {"stream": True, "prompt": [1, 2, 3]}, True, 1),
        ("/v1/completions", {"stream": True, "prompt": ["a", "b"], "n": 2}, True, 4),
        ("/v1/completions", {"prompt": [[1], [2]]}, False, 2),
        ("/v1/completions", {"prompt": [], "n": 2}, False, 2),
        ("/v1/completions", {"prompt": 'say "stream": true'}, False, 1),
        ("/v1/completions", {"prompt": "a", "prompt_embeds": ["b64", "b64"]}, False, 3),
        ("/v1/embeddings", {"stream": True}, False, 1),
    ],
)
def test_streams_and_choices(path, fields, stream, choices):
    found = asked(path, fields)
    assert (found.stream, found.choices) == (stream, choices)


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        ("/v1/chat/completions", {}, None),
        ("/v1/chat/completions", {"max_tokens": 5}, 5),
        ("/v1/chat/completions", {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ("/v1/chat/completions", {"max_tokens": 7, "max_completion_tokens": 5}, 7),
        ("/v1/chat/completions", {"max_tokens": 7, "max_output_tokens": 1}, 7),
        ("/v1/chat/completions", {"max_output_tokens": 1}, None),
        ("/v1/chat/completions", {"max_tokens": 1.5}, None),
        ("/v1/chat/completions", {"max_tokens": -1}, None),
        ("/v1/chat/completions", {"max_tokens": 7, "n_predict": 90}, 90),  # llama.cpp goes by that
        ("/v1/chat/completions", {"max_tokens": 7, "n_predict": -1}, None),  # and answers without end
        ("/v1/chat/completions", {"max_tokens": 7, "max_completion_tokens": -1}, None),
        ("/v1/chat/completions", {"n_predict": 1}, None),
        ("/v1/completions", {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ("/v1/completions", {"max_tokens": 7, "max_completion_tokens": 1}, 7),
        ("/v1/completions", {"max_completion_tokens": 1}, None),
        ("/v1/messages", {"messages": [], "max_tokens": 7, "max_completion_tokens": 1}, 7),
        ("/v1/responses", {"max_output_tokens": 9.0}, 9),
        ("/v1/responses", {"max_output_tokens": 9, "max_tokens": 1, "max_completion_tokens": 1}, 9),
        ("/v1/embeddings", {"max_tokens": 5}, None),
    ],
)
def test_a_limit_of_tokens_is_the_one_that_an_engine_may_heed(path, fields, limit):
    assert asked(path, fields).max_tokens == limit


@pytest.mark.parametrize(
    ("path", "fields", "sent"),
    [
        ("/v1/chat/completions", {"n_predict": 900}, {"max_tokens": 50}),
        ("/v1/chat/completions", {"max_tokens": 7, "n_predict": -1}, {"max_tokens": 50}),
        ("/v1/completions", {"max_completion_tokens": 900}, {"max_tokens": 50}),
        ("/v1/responses", {"n_predict": 900, "max_tokens": 9}, {"max_output_tokens": 50}),
        ("/v1/chat/completions", {"max_completion_tokens": 7}, {"max_completion_tokens": 7}),
    ],
)
def test_where_a_limit_is_set_no_field_that_an_engine_may_heed_goes_beyond_it(path, fields, sent):
    limited = asked(path, fields).limited(50)
    assert {name: n for name, n in limited.inner.items() if "max_" in name or "predict" in name} == sent
    assert json.loads(limited.body()) == limited.inner


def test_a_request_is_read_once_and_sent_as_it_came():
    body = b'{"model": "m", "tools": [{}],  "stream":true}'
    found = ask("POST", "/v1/chat/completions?a=%2F", JSON, body)
    assert (found.model, found.tools, found.stream) == ("m", True, True)
    assert (found.path, found.query, found.inner_path) == (
        "/v1/chat/completions",
        "a=%2F",
        "/v1/chat/completions?a=%2F",
    )
    assert found.body() is body
    assert found.inner == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'"x"',
        b"null",
        b'{"a": NaN}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b"{}{}",
    ],
)
@pytest.mark.parametrize("path", sorted(ROWS))
def test_a_body_that_is_no_json_object_is_refused(path, body):
    if not ROWS[path].json:
        return
    with pytest.raises(Unfit) as refused:
        ask("POST", path, JSON, body)
    assert (refused.value.status, refused.value.code) == (400, "bad_json")


def test_a_body_nested_too_deeply_is_refused():
    with pytest.raises(Unfit):
        ask("POST", "/v1/completions", JSON, b'{"a":' * 5000 + b"1" + b"}" * 5000)


@given(
    st.binary(max_size=80), st.sampled_from([*ROWS, "/v1/audio/x", "/v1/x"]), st.sampled_from(["GET", "POST"])
)
def test_any_body_is_read_or_refused_with_400(body, path, method):
    try:
        found = ask(method, path, "multipart/form-data; boundary=x", body)
    except Unfit as unfit:
        told = unfit.status
    else:
        told = body if found.dialect.translate is None else found.body()
    assert told in (400, body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    ["n", "stream", "prompt", "messages", "model", "max_tokens", "tools", "store", "background", "input",
     "previous_response_id", "file_id", "prompt_embeds", "input_file_id"]
)  # fmt: skip
FREE = sorted(path for path, row in ROWS.items() if row.translate is None)


@given(st.dictionaries(names, json_values, max_size=8), st.sampled_from(FREE))
def test_any_fields_are_read(fields, path):
    found = asked(path, fields)
    assert found.choices >= 1
    assert found.max_tokens is None or found.max_tokens > 0
    assert isinstance(found.model, str)


@pytest.mark.parametrize(
    ("method", "path", "fields", "repeatable"),
    [
        ("POST", "/v1/chat/completions", {"store": True}, True),
        ("POST", "/v1/embeddings", {}, True),
        ("POST", "/v1/responses", {}, True),
        ("POST", "/v1/responses", {"store": False, "tools": [{"type": "function"}]}, True),
        ("POST", "/v1/responses", {"store": True}, False),
        ("POST", "/v1/responses", {"background": True}, False),
        ("POST", "/v1/responses", {"tools": [{"type": "mcp"}]}, False),
        ("POST", "/v1/responses/r/cancel", {}, True),
        ("GET", "/v1/responses/r", None, True),
        ("POST", "/v1/files", {}, False),
        ("GET", "/v1/files/f", None, True),
        ("DELETE", "/v1/files/f", None, True),
        ("POST", "/v1/batches", {}, False),
        ("POST", "/v1/anything", {}, False),
        ("GET", "/v1/models", None, True),
        ("PATCH", "/v1/models", None, False),
    ],
)
def test_what_must_not_run_twice(method, path, fields, repeatable):
    assert asked(path, fields, method).repeatable is repeatable


@pytest.mark.parametrize(
    ("method", "path", "fields", "stored"),
    [
        ("GET", "/v1/responses/resp_1?stream=true", None, "resp_1"),
        ("GET", "/v1/responses/resp%5F1/input_items", None, "resp_1"),
        ("POST", "/v1/responses", {"previous_response_id": "resp_1"}, "resp_1"),
        ("POST", "/v1/responses", {"previous_response_id": None}, None),
        ("POST", "/v1/responses", {"input": [{"content": [{"type": "input_file", "file_id": "f"}]}]}, "f"),
        ("POST", "/v1/responses", {"input": 'the words "file_id"'}, None),
        ("POST", "/v1/chat/completions", {"messages": [{"content": [{"file": {"file_id": "f"}}]}]}, "f"),
        ("DELETE", "/v1/files/f", None, "f"),
        ("GET", "/v1/files/f/content", None, "f"),
        ("GET", "/v1/files", None, None),
        ("POST", "/v1/batches", {"input_file_id": "f"}, "f"),
        ("POST", "/v1/batches/b/cancel", {}, "b"),
        ("GET", "/v1/models/responses", None, None),
    ],
)
def test_ids_of_stored_things(method, path, fields, stored):
    assert asked(path, fields, method).stored == stored


def test_the_short_fields_of_a_form_are_read():
    form = (
        b'--x1\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        b'--x1\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF--\x00\xff\r\n'
        b'--x1\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--x1--\r\n'
    )
    found = ask("POST", "/v1/audio/transcriptions", 'multipart/form-data; boundary="x1"', form)
    assert (found.model, found.stream, found.inner) == ("whisper", True, None)
    assert found.body() is form
    cut = ask("POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=x1", form[:60])
    assert cut.model == ""


def test_what_makes_no_text_brings_no_tokens() -> None:
    body = json.dumps({"model": "m", "input": ["a" * 400, "b"]}).encode()
    found = ask("POST", "/v1/embeddings", "application/json", body)
    assert (found.texts, found.tokens) == (0, len(body) // 4)
    text = ask("POST", "/v1/completions", "application/json", b'{"prompt": ["a", "b"], "max_tokens": 9}')
    assert (text.texts, text.tokens) == (2, len(text.raw) // 4 + 18)


@pytest.mark.parametrize(
    ("path", "streams"),
    [
        ("/v1/completions", True),
        ("/v1/responses", True),
        ("/v1/embeddings", False),
        ("/v2/rerank", False),
        ("/pooling", False),
        ("/score", False),
        ("/tokenize", False),
        ("/v1/messages/count_tokens", False),
    ],
)
def test_a_stream_is_expected_only_where_there_is_one(path: str, streams: bool) -> None:
    """An engine that was asked in vain answers all the same, and is not to be blamed for that."""
    body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "a"}], "prompt": "a"}'
    assert ask("POST", path, "application/json", body).stream is streams
