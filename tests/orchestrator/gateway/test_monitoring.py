"""The listener for Prometheus."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from orchestrator.gateway import monitoring
from orchestrator.units import HostPort
from tests.support.raw_http import connections


@pytest.fixture
def at() -> HostPort:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return HostPort(*probe.getsockname())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(monitoring, "_EVERY", 0.02)


def scrape(client, at):
    """Whether the metrics are there."""

    async def look() -> bool:
        try:
            async with client.get(f"http://{at}/metrics") as answer:
                text = await answer.text()
                return answer.status == 200 and "orchestrator_gateway_targets_generation" in text
        except aiohttp.ClientConnectionError:
            return False

    return look


async def test_metrics_are_apart_from_clients(upstreams, gateways, client, at, eventually):
    running = await gateways(await upstreams("node"), metrics_listen=at)
    await eventually(scrape(client, at))
    async with client.get(f"http://{at}/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await answer.text()
    for line in (
        'orchestrator_gateway_targets{state="healthy"} 1.0',
        'orchestrator_gateway_target_in_flight{target="node"} 0.0',
        "orchestrator_gateway_targets_generation 1.0",
        "orchestrator_gateway_targets_active 1.0",
        'orchestrator_gateway_target_sets_total{result="accepted",via="push"} 1.0',
        "orchestrator_gateway_targets_age_seconds",
        "orchestrator_gateway_daemon_silence_seconds",
    ):
        assert line in text
    for path in ("/v1/chat/completions", "/v1/state", "/v1/targets", "/"):
        async with client.get(f"http://{at}{path}") as answer:
            assert answer.status == 404
    async with client.get(running.url + "/metrics") as answer:
        assert answer.status == 404


async def test_it_answers_to_its_own_names_only(gateways, client, at, eventually):
    await gateways(metrics_listen=at)
    await eventually(scrape(client, at))
    async with connections() as connect:
        one = await connect(at.port)
        await one.send(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert (await one.answer())[0] == 421


async def test_a_port_that_is_taken_keeps_no_client_out_and_is_taken_when_it_is_free(
    tmp_path, upstreams, gateways, client, ask, at, eventually, capsys
):
    first = await gateways(metrics_listen=at)
    await eventually(scrape(client, at))
    second = await gateways(
        await upstreams("node"),
        metrics_listen=at,
        socket=tmp_path / "other.sock",
        targets_file=tmp_path / "other",
    )
    assert (await ask(second)).status == 200
    said = ""

    def says() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return said.count("metrics_listener.open_failed") == 1

    await eventually(says)
    await first.stop()
    await eventually(scrape(client, at))
    async with client.get(f"http://{at}/metrics") as answer:
        assert 'target="node"' in await answer.text()
