"""Which requests a listener answers: for names of its own; and no change that a foreign page may ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from cloud.serving.hosts import ANY, Hosts

pytestmark = pytest.mark.asyncio

JSON = {"Content-Type": "application/json"}
EVIL = "http://evil.example"


def request(method: str, *heads: str, target: str = "/", version: str = "1.1", body: str = "") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", *heads, "Connection: close", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + f"\r\n\r\n{body}").encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("localhost:9480", True),
        ("localhost:", True),
        ("127.0.0.1:9480", True),
        ("10.0.0.5", True),
        ("[::1]:9480", True),
        ("[fe80::1]", True),
        ("ours.internal:1", True),
        ("OURS.internal.", True),
        ("evil.example", False),
        ("evil.example:9480", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("ours.internal..", False),
        ("notours.internal", False),
        ("localhost@evil.example", False),
        ("user@localhost", False),
        ("localhost:port", False),
        ("localhost, evil.example", False),
        ("2130706433", False),
        ("127.1", False),
        ("[::1", False),
        (".", False),
        ("", False),
    ],
)
async def test_names_of_a_listener(given: str, accepted: bool) -> None:
    assert Hosts(("ours.internal", "")).accepts(given) is accepted
    assert Hosts((ANY,)).accepts("evil.example")


async def test_the_names_of_the_machine_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver is asked beside the loop; where it fails, the name alone is known."""
    import socket

    asked: list[str] = []

    def resolved(name: str, *_: Any, **__: Any) -> Any:
        asked.append(name)
        return [(2, 1, 6, "Control.corp.example.", ("10.0.0.5", 0)), (2, 1, 6, "", ("10.0.0.6", 0))]

    monkeypatch.setattr(socket, "gethostname", lambda: "control")
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    hosts = Hosts()
    assert not hosts.accepts("control")
    hosts.add_own_names().join()
    assert asked == ["control"]
    assert hosts.accepts("control:9477")
    assert hosts.accepts("control.corp.example:9477")
    assert not hosts.accepts("other.corp.example")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    alone = Hosts()
    alone.add_own_names().join()
    assert alone.names == {"localhost", "control"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (request("GET", "Host: localhost"), 200),
        (request("GET", version="1.0"), 200),
        (request("GET", "Host: evil.example", version="1.0"), 421),
        (request("GET"), 400),
        (request("GET", "Host: localhost", "Host: localhost"), 400),
        (request("GET", "Host: localhost", "Host: evil.example"), 400),
        (request("GET", "Host: evil.example"), 421),
        (request("GET", "Host:"), 421),
        (request("GET", "Host: localhost", target="http://localhost/"), 200),
        (request("GET", "Host: localhost", target="http://evil.example/"), 421),
        (request("GET", "Host: evil.example", target="http://localhost/"), 421),
        (request("POST", "Host: evil.example"), 421),
    ],
)
async def test_a_request_for_another_name_is_refused(
    serving: Any, say: Any, changed: Any, words: bytes, code: int
) -> None:
    with capture_logs() as lines:
        async with serving(hosts=Hosts(table="daemon", listener="here")) as port:
            answer = await say(port, words)
    assert status(answer) == code
    if code == 421:
        said = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        what, _, advice = said.partition("; ")
        assert what.endswith("is not a name of this listener")
        if "evil.example" in what:
            assert advice == (
                'if it should be, write allowed_hosts = ["evil.example"] in [daemon] and restart the listener'
            )
            (line,) = [line for line in lines if line["event"] == "request.misdirected"]
            assert (line["listener"], line["host"], line["advice"]) == ("here", "evil.example", advice)
    assert changed.bodies == []


async def test_many_requests_for_another_name_are_one_line_at_first(serving: Any, say: Any) -> None:
    with capture_logs() as lines:
        async with serving(hosts=Hosts(table="daemon")) as port:
            for number in range(20):
                await say(port, request("GET", f"Host: evil-{number}.example:80"))
    assert len([line for line in lines if line["event"] == "request.misdirected"]) <= 2


@pytest.mark.parametrize(
    ("heads", "code"),
    [
        ({**JSON}, 200),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ({**JSON, "Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:9480"}, 200),
        ({**JSON, "Sec-Fetch-Site": "none"}, 200),
        ({**JSON, "Origin": "http://localhost:9480"}, 200),
        ({**JSON, "Origin": "http://LOCALHOST.:9480"}, 200),
        ({}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=application/json"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:9480"}, 403),
        ({**JSON, "Sec-Fetch-Site": ""}, 403),
        ({**JSON, "Origin": EVIL}, 403),
        ({**JSON, "Origin": "null"}, 403),
        ({**JSON, "Origin": "http://localhost:9481"}, 403),
        ({**JSON, "Origin": "http://localhost"}, 403),
        ({**JSON, "Origin": "http://127.0.0.1:9480"}, 403),
        ({**JSON, "Origin": "file://localhost:9480"}, 403),
        ({"Content-Type": "text/plain", "Origin": EVIL}, 403),
    ],
)
async def test_a_change_that_a_foreign_page_may_have_asked_for_is_refused(
    serving: Any, say: Any, changed: Any, heads: dict[str, str], code: int
) -> None:
    lines = ["Host: localhost:9480", *(f"{name}: {value}" for name, value in heads.items())]
    async with serving() as port:
        assert status(await say(port, request("POST", *lines, body="{}"))) == code
        assert status(await say(port, request("GET", *lines))) == 200, "reading is not changing"
    assert changed.bodies == ([b"{}"] if code == 200 else [])


async def test_two_kinds_of_body_are_none(serving: Any, say: Any, changed: Any) -> None:
    lines = ("Host: localhost", "Content-Type: application/json", "Content-Type: text/plain")
    async with serving() as port:
        assert status(await say(port, request("POST", *lines, body="{}"))) == 400
    assert changed.bodies == []


async def test_what_no_route_takes_is_said_to_be_so(serving: Any, say: Any) -> None:
    async with serving() as port:
        assert status(await say(port, request("POST", "Host: localhost", target="/none"))) == 404
        assert status(await say(port, request("PUT", "Host: localhost"))) == 405
