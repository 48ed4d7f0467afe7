"""Which headers pass, which end at the gateway, and what it says of itself and of clients."""

from __future__ import annotations

import pytest

from orchestrator.gateway.config import GatewayError, one_pool

WIRES = ("http", "https")
GET = b"GET /v1/models HTTP/1.1\r\nHost: llm.internal:8000\r\n"
ANY = {"allowed_hosts": ("*",)}


async def asked(raw, running, node, lines=b"", first=GET):
    """Ask once with these header lines: what the node got, and what came back."""
    one = await raw(running)
    await one.send(first + lines + b"\r\n")
    status, headers, _ = await one.answer()
    assert status == 200
    return node.seen[-1].headers, headers


LIES = (
    b"X-Forwarded-For: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\nX-Forwarded-Proto: https\r\n"
    b"X-Forwarded-Host: api.example\r\nX-Forwarded-Port: 443\r\nX-FORWARDED-PREFIX: /a\r\n"
    b"Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n"
)


async def test_the_gateway_says_where_a_request_comes_from(upstreams, gateways, raw, wire):
    node = await upstreams("node")
    seen, _ = await asked(raw, await gateways(node, **ANY), node, LIES)
    origins = {name: value for name, value in seen.items() if "forwarded" in name or name == "x-real-ip"}
    assert origins == {
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http" if wire is None else "https",
        "x-forwarded-host": "llm.internal:8000",
    }


@pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.0/8"])
async def test_what_a_trusted_proxy_says_passes_and_it_is_added(upstreams, gateways, raw, trusted):
    node = await upstreams("node")
    seen, _ = await asked(
        raw, await gateways(node, trusted_proxies=("10.0.0.0/8", trusted), **ANY), node, LIES
    )
    assert seen["x-forwarded-for"] == "1.2.3.4, 5.6.7.8, 127.0.0.1"
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == ("https", "api.example")
    assert (seen["x-forwarded-port"], seen["x-real-ip"]) == ("443", "1.2.3.4")


async def test_a_trusted_proxy_that_says_nothing(upstreams, gateways, raw, wire):
    node = await upstreams("node")
    seen, _ = await asked(raw, await gateways(node, trusted_proxies=("127.0.0.1",), **ANY), node)
    assert seen["x-forwarded-for"] == "127.0.0.1"
    ours = "http" if wire is None else "https"
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == (ours, "llm.internal:8000")


async def test_one_that_is_not_trusted_among_others_that_are(upstreams, gateways, raw):
    node = await upstreams("node")
    seen, _ = await asked(raw, await gateways(node, trusted_proxies=("10.0.0.0/8", "::1"), **ANY), node, LIES)
    assert seen["x-forwarded-for"] == "127.0.0.1"


async def test_hop_by_hop_headers_end_in_both_directions(upstreams, gateways, raw):
    async def chatty(talk):
        more = (
            "Connection: X-Private\r\nConnection: x-other, keep-alive\r\nX-Private: 1\r\nX-Other: 2\r\n"
            "Keep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\n"
            'Server: uvicorn/0.34 CPython/3.12\r\nAlt-Svc: h3=":443"\r\nVia: 1.0 inner\r\nX-Kept: yes\r\n'
        )
        await talk.reply("200 OK", b"{}", more=more)

    node = await upstreams("node", chatty)
    lines = (
        b"Connection: X-Mine\r\nConnection: x-yours , keep-alive, X-Forwarded-For\r\n"
        b"X-Mine: 1\r\nX-Yours: 2\r\n"
        b"Keep-Alive: 5\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: close\r\nTE: trailers\r\n"
        b"Trailer: X-Sum\r\nUpgrade: h2c\r\nVia: 1.0 outer\r\nX-Kept: yes\r\n"
    )
    seen, back = await asked(raw, await gateways(node, **ANY), node, lines)
    ended = {"x-mine", "x-yours", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer"}
    assert not (ended | {"upgrade", "connection"}) & set(seen)
    assert (seen["x-kept"], seen["x-forwarded-for"]) == ("yes", "127.0.0.1")
    assert seen["via"] == "1.1 spot-orchestrator", "the last of two lines"
    gone = {"x-private", "x-other", "keep-alive", "proxy-authenticate", "trailer", "upgrade", "alt-svc"}
    assert not gone & set(back)
    assert (back["x-kept"], back["server"], back["via"]) == (
        "yes",
        "spot-orchestrator",
        "1.1 spot-orchestrator",
    )


@pytest.mark.parametrize("path", [b"/v1/models", b"/healthz", b"/readyz", b"/pause", b"/metrics"])
async def test_every_answer_says_who_gives_it_and_to_what(upstreams, gateways, raw, path):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    await one.send(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n\r\n")
    head = (await one.reader.readuntil(b"\r\n\r\n")).decode()
    assert "X-Request-Id: mine\r\n" in head
    assert "Server: spot-orchestrator\r\n" in head
    assert head.count("Date: ") == 1
    assert "aiohttp" not in head.lower()
    assert "python" not in head.lower()


async def test_an_old_client_without_a_host(upstreams, gateways, raw):
    node = await upstreams("node")
    seen, _ = await asked(raw, await gateways(node), node, first=b"GET /v1/models HTTP/1.0\r\n")
    assert "x-forwarded-host" not in seen
    assert seen["via"] == "1.0 spot-orchestrator"


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(GatewayError, match=r"trusted_proxies: 'proxy': must be an address or a network"):
        one_pool(targets_file=tmp_path / "t", socket=tmp_path / "s", trusted_proxies=("proxy",))
