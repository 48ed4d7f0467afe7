"""Routes and providers in words: who answers instead of whom, for how much, and what is not known."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.render import render, routes
from orchestrator.render.parts import Look
from tests.support.routed import routed


def view_of(status: dict[str, Any]) -> Any:
    return {
        "schema": "routes/1",
        "source": "daemon",
        **{k: status[k] for k in ("at", "gateway", "routes", "providers")},
    }


def test_a_pool_that_is_down_says_who_answers_and_for_how_much(small: dict[str, Any]) -> None:
    text = render.status(routed(small), Look(width=120))
    assert "DOWN" in text.splitlines()[0]
    assert "! its requests for assistant are answered by claude, $1.20 today\n" in text
    assert "! assistant: answered by claude since 14:13:20Z, $1.20 today: pool llama is down\n" in text
    assert "! private: nobody is known to answer\n" in text
    assert "PROVIDER  IN FLIGHT       PAID TODAY   HELD  UNANSWERED  STATE\n" in text
    assert "claude         3/64  $1.20 of $50.00  $0.10           2  is well\n" in text
    assert "orchestrator routes" in text.splitlines()[-1]


def test_a_status_without_routes_stays_as_it_is(small: dict[str, Any]) -> None:
    text = render.status(small, Look(width=120))
    assert "route" not in text
    assert "PROVIDER" not in text


def test_routes_that_are_well_take_one_line(small: dict[str, Any]) -> None:
    status = routed(small)
    for route in status["routes"]:
        route |= {"stands_in": None, "servable": True, "left_out": []}
    text = render.status(status, Look(width=120))
    assert "2 routes as they are meant\n" in text
    assert "answered by" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_routes(width: int, small: dict[str, Any]) -> None:
    text = routes.routes(view_of(routed(small)), Look(width=width))
    assert max(map(len, text.splitlines())) <= width
    assert "assistant, gpt-4o" in text
    assert "provider claude (big)" in text
    assert "$1.20 of $20.00" in text
    assert "pool llama is down" in " ".join(text.split())


def test_wide_shows_each_backend_and_how_its_requests_ended(small: dict[str, Any]) -> None:
    text = routes.routes(view_of(routed(small)), Look(width=200, wide=True))
    assert "pool llama is down: 90 answered, 7 down" in text
    assert "provider claude (big) is well: 7 answered" in text


def test_what_is_not_known_is_said_and_not_shown_as_zero(small: dict[str, Any]) -> None:
    status = routed(small)
    status["gateway"] = {
        "seen_s": 125.0,
        "error": "the gateway at /x cannot be reached",
        "spend_error": "it is damaged",
    }
    unknown = {"goes_to": None, "servable": None, "stands_in": None, "left_out": [], "spent_today_usd": None}
    for route in status["routes"]:
        route |= unknown
    status["providers"][0] |= {"state": None, "in_flight": None, "failures": None, "spent_today_usd": None}
    for text in (
        render.status(status, Look(width=160)),
        routes.routes(view_of(status), Look(width=160)),
    ):
        assert (
            "where requests go now is not known: the gateway at /x cannot be reached, it answered last 2m"
            in text
        )
        assert "what providers cost is not known now: it is damaged" in text
        assert "?/64" in text
        assert "as they are meant" not in text
        assert "nobody" not in text


def test_names_from_outside_cannot_write_to_the_terminal(small: dict[str, Any]) -> None:
    status = routed(small)
    status["routes"][0]["left_out"] = ["pool \x1b[31mllama is down"]
    status["providers"][0]["state"] = "failed \x1b]0;x\x07"
    for text in (render.status(status, Look(width=160)), routes.routes(view_of(status), Look(width=160))):
        assert "\x1b" not in text


def test_many_routes_out_of_order_do_not_fill_the_screen(small: dict[str, Any]) -> None:
    status = routed(small)
    status["routes"] = [status["routes"][0] | {"name": f"r{n}"} for n in range(50)]
    text = render.status(status, Look(width=160))
    assert "! and 40 more routes: see `orchestrator routes`" in text
