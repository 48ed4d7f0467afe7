"""Real providers in a gateway: a pool that goes down is paid for until it is back, and all of it shows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator.gateway.config import GatewayError, ProviderSpec
from orchestrator.gateway.spend_file import Totals, read_totals
from policies.spend import PICO
from tests.support.paid_provider import HANG, Line, PaidProvider, Seen, answers, provider
from tests.support.provider_stand import MODEL, OWN, PRICE, due
from tests.support.routed_gateway import Routed, api, echo, pool, route, until
from tests.support.upstreams import Upstream

Start = Callable[..., Awaitable[Upstream]]


def spec(one: PaidProvider, name: str = "claude", **fields: Any) -> ProviderSpec:
    known: dict[str, Any] = {"prices": {MODEL: OWN}, "usd_per_day_pico": PICO, "kind": "anthropic"}
    return ProviderSpec(name=name, url=f"http://127.0.0.1:{one.port}", **(known | fields))


@contextlib.asynccontextmanager
async def gateway(directory: Path, pools: Any, *routes: Any, **settings: Any) -> AsyncIterator[Routed]:
    one = Routed(directory, pools, *routes, **({"spend_file": directory / "spend.db"} | settings))
    try:
        yield await one.start()
    finally:
        await one.stop()


def booked(directory: Path) -> Totals:
    return read_totals(directory / "spend.db", time.time())[0]


async def test_a_pool_that_is_down_is_paid_for_until_it_is_back(tmp_path: Path, upstreams: Start) -> None:
    engine = await upstreams("a", echo)
    chat = route("assistant", to=[pool("chat"), api("claude", MODEL)], usd_per_day_pico=PICO // 2)
    async with provider() as paid, gateway(tmp_path, {"chat": [engine]}, chat, specs=[spec(paid)]) as one:
        assert (await one.ask("assistant", max_tokens=5))[1]["x-orchestrator-backend"].startswith("chat")
        await engine.stop()
        for stream in (False, True):
            status, headers, text = await one.ask("assistant", max_tokens=5, stream=stream)
            assert (status, headers["x-orchestrator-backend"]) == (200, f"claude/{MODEL}")
            assert '"model":"assistant"' in text
        assert len(paid.seen) == 2
        stands_in = 'orchestrator_gateway_route_stands_in{provider="claude",route="assistant"}'
        assert f"{stands_in} 1.0" in await text_of(one, "/metrics")
        await engine.start()
        await until(lambda: one.gateway.lanes["chat"].view().sound)
        assert (await one.ask("assistant", max_tokens=5))[1]["x-orchestrator-backend"].startswith("chat")
        assert len(paid.seen) == 2

        await one.gateway._providers._book.settled()
        cost = due(paid.billed) / PICO
        [row] = (await one.control("GET", "/v1/routes"))[1]["providers"]
        assert (row["name"], row["kind"], row["state"], row["closed"]) == (
            "claude",
            "anthropic",
            "is well",
            False,
        )
        assert (row["in_flight"], row["in_flight_limit"], row["held_usd"], row["cap_usd"]) == (0, 64, 0, 1.0)
        assert row["spent_today_usd"] == pytest.approx(cost)
        [line] = row["today"]
        assert (line["route"], line["model"], line["requests"], line["usd"]) == (
            "assistant",
            MODEL,
            2,
            pytest.approx(cost),
        )
        metrics = await text_of(one, "/metrics")
        assert f"{stands_in} 0.0" in metrics
        for sample in (
            'route_servable{route="assistant"} 1.0',
            f'provider_dollars_total{{model="{MODEL}",provider="claude",route="assistant"}} {cost}',
            'provider_cap_dollars{provider="claude"} 1.0',
            'provider_route_cap_dollars{route="assistant"} 0.5',
            'provider_closed{provider="claude"} 0.0',
            "provider_spend_file_failing 0.0",
        ):
            assert f"orchestrator_gateway_{sample}" in metrics
    assert booked(tmp_path).amount(provider="claude") == due(paid.billed)


async def text_of(one: Routed, path: str) -> str:
    connector = aiohttp.UnixConnector(str(one.config.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://gateway{path}") as answer,
    ):
        return await answer.text()


async def test_data_that_stays_reaches_no_provider(tmp_path: Path, upstreams: Start) -> None:
    engine = await upstreams("a", echo)
    routes = route("private", to=[pool("chat")], stays=True), route("open", to=[api("claude", MODEL)])
    async with provider() as paid, gateway(tmp_path, {"chat": [engine]}, *routes, specs=[spec(paid)]) as one:
        await engine.stop()
        for stream in (False, True):
            assert (await one.ask("private", max_tokens=5, stream=stream))[0] in (502, 503)
        assert paid.connections == 0


async def test_who_reached_its_cap_leaves_requests_to_the_next(tmp_path: Path) -> None:
    to = [api("a", MODEL), api("b", MODEL)]
    async with provider() as a, provider() as b:
        specs = [spec(a, "a", usd_per_day_pico=1), spec(b, "b", kind="openai")]
        async with gateway(tmp_path, {}, route("assistant", to=to), specs=specs) as one:
            status, headers, _ = await one.ask("assistant", max_tokens=5)
            assert (status, headers["x-orchestrator-backend"]) == (200, f"b/{MODEL}")
            assert (a.seen, len(b.seen)) == ([], 1)
            rows = (await one.control("GET", "/v1/routes"))[1]["providers"]
            assert [row["over_cap"] for row in rows] == [{"assistant": 1}, {}]


async def test_what_a_stopping_gateway_breaks_off_is_booked_before_it_is_gone(tmp_path: Path) -> None:
    chat = route("assistant", to=[api("claude", MODEL)])
    async with provider() as paid, gateway(tmp_path, {}, chat, specs=[spec(paid)]) as one:
        words = [{"role": "user", "content": HANG}]
        asked = asyncio.create_task(one.ask("assistant", messages=words, max_tokens=5, stream=True))
        await until(lambda: paid.seen)
        await one.stop()
        _, _, text = await asked
        assert "[DONE]" not in text
    [line] = booked(tmp_path).lines
    assert (line.held, line.estimated, line.requests) == (0, 1, 1)
    assert line.amount > due(paid.billed)


async def test_an_heir_and_the_old_one_keep_a_cap_together(tmp_path: Path) -> None:
    """As during a hand-over: both hold, book and read one file."""
    chat = route("assistant", to=[api("claude", MODEL)])
    waits = asyncio.Event()

    async def later(api: PaidProvider, seen: Seen, line: Line) -> None:
        await waits.wait()
        await answers(api, seen, line)

    async with provider(later) as paid:
        held = PRICE.rates.dearest * 2_500 + PRICE.rates.output * 5
        limited = spec(paid, usd_per_day_pico=held * 6)
        folders = [tmp_path / name for name in ("old", "heir")]
        for folder in folders:
            folder.mkdir()
        shared = {"spend_file": tmp_path / "spend.db", "specs": [limited]}
        async with (
            gateway(folders[0], {}, chat, **shared) as old,
            gateway(folders[1], {}, chat, **shared) as heir,
        ):
            asked = [asyncio.create_task(one.ask("assistant", max_tokens=5)) for one in (old, heir) * 10]
            await until(lambda: sum(task.done() for task in asked) + len(paid.seen) == len(asked))
            totals = booked(tmp_path)
            assert 0 < totals.held() <= held * 6
            assert 4 <= len(paid.seen) < 10
            waits.set()
            found = [(await task)[0] for task in asked]
            assert (found.count(200), found.count(503)) == (len(paid.seen), 20 - len(paid.seen))
        assert (booked(tmp_path).amount(), booked(tmp_path).held()) == (due(paid.billed), 0)


async def test_a_gateway_without_a_place_for_what_it_spends_does_not_start(tmp_path: Path) -> None:
    chat = route("assistant", to=[api("claude", MODEL)])
    async with provider() as paid:
        nowhere = Routed(tmp_path, {}, chat, specs=[spec(paid)])
        with pytest.raises(GatewayError, match="spend_file"):
            await nowhere.start()
        (tmp_path / "other").mkdir()
        untrusted = [spec(paid, ca_file=tmp_path / "none.pem")]
        with pytest.raises(GatewayError, match=r"provider 'claude': .*No such file"):
            await Routed(
                tmp_path / "other", {}, chat, specs=untrusted, spend_file=tmp_path / "spend.db"
            ).start()
