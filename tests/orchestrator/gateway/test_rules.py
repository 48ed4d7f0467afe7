"""The pure parts: the request's state machine, failures told from answers, settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.gateway.__main__ import config_from_json
from orchestrator.gateway.app import names_of
from orchestrator.gateway.breaker import RetryBudget
from orchestrator.gateway.config import GatewayConfig, GatewayError
from orchestrator.gateway.failure import Failure, of_status
from orchestrator.gateway.request import Exchange, Stage
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


def test_retries_are_counted_and_bounded():
    exchange, budget = Exchange("r", 0.0), RetryBudget(0.0, 100)
    exchange.move(Stage.SENT)
    for _ in range(10):
        assert exchange.may_retry(Failure.CONNECT, max_retries=2, budget=budget)
    assert exchange.may_retry(Failure.DISCONNECTED, max_retries=2, budget=budget)
    assert exchange.may_retry(Failure.ABORTED, max_retries=2, budget=budget)
    assert not exchange.may_retry(Failure.DISCONNECTED, max_retries=2, budget=budget)
    assert exchange.retries == 12


def test_nothing_is_retried_once_the_client_has_a_byte():
    exchange, budget = Exchange("r", 0.0), RetryBudget(0.0, 100)
    exchange.move(Stage.SENT)
    exchange.move(Stage.STREAMING)
    assert not exchange.may_retry(Failure.CONNECT, max_retries=2, budget=budget)


def body(message, kind="InternalServerError"):
    return json.dumps({"error": {"message": message, "type": kind, "code": 500}}).encode()


@pytest.mark.parametrize(
    ("status", "answer", "draining", "failure"),
    [
        (200, b"", False, None),
        (400, body("EngineCore"), True, None),
        (500, body("EngineCore encountered an issue. See stack trace"), False, Failure.ENGINE_ERROR),
        (500, body("cannot schedule new futures after shutdown"), False, Failure.ENGINE_ERROR),
        (500, body("boom", "EngineDeadError"), False, Failure.ENGINE_ERROR),
        (500, body("list index out of range"), False, None),
        (500, body("list index out of range"), True, Failure.ENGINE_ERROR),
        (500, b"Internal Server Error", False, None),
        (500, b'{"error":"plain"}', False, None),
        (502, b"", False, Failure.BAD_GATEWAY),
        (503, b"", False, Failure.UNAVAILABLE),
        (504, b"", False, Failure.BAD_GATEWAY),
        (529, b"", False, None),
    ],
)
def test_failures_are_told_from_answers(status, answer, draining, failure):
    assert of_status(status, answer, draining=draining) is failure


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
    assert config == GatewayConfig(
        targets_file=Path("t.json"), socket=Path("s"), allow_paths=("/ping",), port=0
    )
    assert "secret" not in repr(GatewayConfig(targets_file=Path("t"), socket=Path("s"), api_key="secret"))


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
    config = GatewayConfig(targets_file=Path("t"), socket=Path("s"), host=host, allowed_hosts=allowed)
    asked = ("127.0.0.1:8000", "10.0.0.5:8000", "localhost", "llm.internal", "evil.example")
    hosts = names_of(config, HostPort(config.host, config.port))
    assert {name for name in asked if hosts.accepts(name)} == accepted
