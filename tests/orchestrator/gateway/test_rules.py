"""The pure parts: the request's state machine, failures told from answers, paths, shapes, settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.gateway.__main__ import config_from_json
from orchestrator.gateway.config import GatewayError, one_pool
from orchestrator.gateway.failure import Blame, Failure, of_status, told
from orchestrator.gateway.listening import names_of
from orchestrator.gateway.request import MOST_CONTINUATIONS, Exchange, Stage, Suspect
from orchestrator.units import HostPort


def test_the_life_of_a_request_has_no_way_back():
    exchange = Exchange("r", 0.0)
    for stage in (Stage.SENT, Stage.QUEUED, Stage.SENT, Stage.STREAMING):
        exchange.move(stage)
    with pytest.raises(AssertionError, match="no way from streaming to queued"):
        exchange.move(Stage.QUEUED)
    exchange.move(Stage.DONE)
    assert exchange.over
    with pytest.raises(AssertionError):
        exchange.move(Stage.FAILED)


def sent(stage=Stage.SENT):
    exchange = Exchange("r", 0.0)
    exchange.move(Stage.SENT)
    if stage is not Stage.SENT:
        exchange.move(stage)
    return exchange


def retries(exchange, failure, *, repeatable=True, paid=True):
    if failure.blames is Blame.DOUBT:
        exchange.suspects.append(Suspect(None, failure))
    return exchange.may_retry(failure, repeatable=repeatable, max_retries=2, paid=lambda: paid)


def test_retries_are_counted_and_bounded():
    exchange = sent()
    for _ in range(10):
        assert retries(exchange, Failure.CONNECT)
        assert retries(exchange, Failure.UNAVAILABLE)
    assert retries(exchange, Failure.DISCONNECTED)
    assert retries(exchange, Failure.ABORTED)
    assert not retries(exchange, Failure.DISCONNECTED)
    assert retries(exchange, Failure.MOVED)
    assert exchange.retries == 23


def test_what_may_be_the_requests_own_fault_is_checked_at_two_peers():
    exchange = sent()
    assert [retries(exchange, Failure.REFUSED_HERE) for _ in range(4)] == [True, True, False, False]


def test_what_may_not_run_twice_is_sent_again_only_where_nothing_ran():
    assert not retries(sent(), Failure.DISCONNECTED, repeatable=False)
    assert not retries(sent(), Failure.SERVER_ERROR, repeatable=False)
    for failure in (Failure.CONNECT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.REFUSED_HERE):
        assert retries(sent(), failure, repeatable=False)


def test_a_retry_that_is_not_paid_for_does_not_happen():
    assert not retries(sent(), Failure.DISCONNECTED, paid=False)
    assert retries(sent(), Failure.UNAVAILABLE, paid=False)
    assert retries(sent(), Failure.MOVED, paid=False)


def test_a_deadline_ends_a_request():
    assert not retries(sent(), Failure.DEADLINE)
    assert not sent(Stage.STREAMING).may_continue(Failure.DEADLINE, lambda: True)


def test_nothing_is_retried_once_the_client_has_a_byte():
    assert not retries(sent(Stage.STREAMING), Failure.CONNECT)


def test_a_stream_is_continued_a_bounded_number_of_times():
    exchange = sent(Stage.STREAMING)
    count = 0
    while exchange.may_continue(Failure.DISCONNECTED, lambda: True):
        exchange.move(Stage.CONTINUING)
        exchange.move(Stage.STREAMING)
        count += 1
    assert count == MOST_CONTINUATIONS
    assert not sent(Stage.STREAMING).may_continue(Failure.LOST, lambda: False)
    assert sent(Stage.STREAMING).may_continue(Failure.MOVED, lambda: False)


def body(message, kind="InternalServerError"):
    return json.dumps({"error": {"message": message, "type": kind, "code": 500}}).encode()


@pytest.mark.parametrize(
    ("status", "answer", "draining", "failure"),
    [
        (200, b"", False, None),
        (299, b"", False, None),
        (300, b"", False, Failure.REFUSED_HERE),
        (304, b"", False, None),
        (307, b"", False, Failure.REFUSED_HERE),
        (400, body("EngineCore"), True, Failure.REFUSED_HERE),
        (404, b"", False, Failure.REFUSED_HERE),
        (429, b"", False, Failure.RATE_LIMITED),
        (500, body("EngineCore encountered an issue. See stack trace"), False, Failure.ENGINE_ERROR),
        (500, body("cannot schedule new futures after shutdown"), False, Failure.ENGINE_ERROR),
        (500, body("boom", "EngineDeadError"), False, Failure.ENGINE_ERROR),
        (500, body("list index out of range"), False, Failure.SERVER_ERROR),
        (500, body("list index out of range"), True, Failure.ENGINE_ERROR),
        (500, b"Internal Server Error", False, Failure.SERVER_ERROR),
        (500, b'{"error":"plain"}', False, Failure.SERVER_ERROR),
        (502, b"", False, Failure.BAD_GATEWAY),
        (503, b"", False, Failure.UNAVAILABLE),
        (504, b"", False, Failure.BAD_GATEWAY),
        (529, b"", False, Failure.UNAVAILABLE),
    ],
)
def test_failures_are_told_from_answers(status, answer, draining, failure):
    assert of_status(status, answer, draining=draining) is failure


LONG = "input (1401 tokens) is too large to process. increase the physical batch size"


@pytest.mark.parametrize(
    ("status", "answer", "tells", "code", "failure"),
    [
        (500, {"error": {"code": 500, "message": LONG, "type": "server_error"}}, 400,
         "context_length_exceeded", Failure.REFUSED_HERE),
        (501, {"error": {"code": 501, "message": "no reranking", "type": "not_supported_error"}}, 400,
         "not_supported", Failure.REFUSED_HERE),
        (501, {"message": "no"}, 400, None, Failure.REFUSED_HERE),
        (424, {"message": "no backend", "code": 424, "type": "Backend"}, 500, None, Failure.SERVER_ERROR),
        (500, {"error": {"code": 500, "message": "vector::_M_range"}}, 500, 500, Failure.SERVER_ERROR),
        (400, {"error": {"code": 400, "message": LONG}}, 400, 400, Failure.REFUSED_HERE),
        (500, {"error": LONG}, 500, None, Failure.SERVER_ERROR),
        (500, [LONG], 500, None, Failure.SERVER_ERROR),
        (200, {"error": {"message": LONG}}, 200, None, None),
    ],
)  # fmt: skip
def test_an_engines_word_of_whose_fault_it_is_is_set_right(status, answer, tells, code, failure):
    """llama.cpp calls its own what is the client's, TEI and TGI the client's what is theirs."""
    new, body = told(status, json.dumps(answer).encode())
    said = json.loads(body)
    assert new == tells
    assert of_status(new, body, draining=False) is failure
    error = said.get("error") if isinstance(said, dict) else None
    assert (error.get("code") if isinstance(error, dict) else None) == code
    if code in ("context_length_exceeded", "not_supported"):
        assert (error["message"], error["type"]) == (answer["error"]["message"], "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"port": 70000}, "port: 70000"),
        ({"idle_timeout": 0}, "idle_timeout: 0: must be more than zero"),
        ({"max_retries": -1}, "max_retries: -1: must be zero or more"),
        ({"health_path": "health"}, "path 'health': must start with a slash"),
        ({"socket": "/" + "x" * 120}, "longer than 107 bytes"),
        ({"color": 1}, "color"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, says):
    text = json.dumps({"targets_file": "t.json", "socket": "s.sock"} | fields)
    with pytest.raises(GatewayError, match=says):
        config_from_json(text)


def test_settings_from_json():
    config = config_from_json(
        '{"targets_file": "t.json", "socket": "s", "allow_paths": ["/ping"], "port": 0}'
    )
    assert config == one_pool(targets_file=Path("t.json"), socket=Path("s"), allow_paths=("/ping",), port=0)
    assert "secret" not in repr(one_pool(targets_file=Path("t"), socket=Path("s"), api_key="secret"))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_no_object_are_refused(text):
    with pytest.raises(GatewayError, match="JSON"):
        config_from_json(text)


@pytest.mark.parametrize(
    ("host", "allowed", "accepted"),
    [
        ("127.0.0.1", (), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost"}),
        ("localhost", (), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost"}),
        ("::1", (), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost"}),
        ("127.0.0.1", ("llm.internal",), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal"}),
        ("10.0.0.5", ("llm.internal",), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal"}),
        ("10.0.0.5", (), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal", "evil.example"}),
        ("0.0.0.0", (), {"127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal", "evil.example"}),
        (
            "127.0.0.1",
            ("*",),
            {"127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal", "evil.example"},
        ),
    ],
)
def test_the_names_of_a_gateway_follow_from_where_it_listens(
    host: str, allowed: tuple[str, ...], accepted: set[str]
) -> None:
    config = one_pool(targets_file=Path("t"), socket=Path("s"), host=host, allowed_hosts=allowed)
    asked = ("127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal", "evil.example")
    hosts = names_of(config, HostPort(config.host, config.port))
    assert {name for name in asked if hosts.accepts(name)} == accepted
