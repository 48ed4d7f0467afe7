"""A pool is lost and a provider answers for money: status, routes and journal say so once, to the cent.

That it is over is told a minute later: `tests/orchestrator/daemon/test_outside.py` lets that minute pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from policies.spend import PICO, Price, Rates, cents, cost
from tests.support.paid_provider import PaidProvider, provider

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.asyncio, pytest.mark.timeout(300)]

PRICE = Price(Rates.of(input="3000", output="15000", cached="300"))


def tables(api: PaidProvider) -> Mapping[str, Mapping[str, object]]:
    return {
        "provider.api": {"kind": "openai", "url": f"http://127.0.0.1:{api.port}", "usd_per_day": "500"},
        "provider.api.price.m": {"input": "3000", "output": "15000", "cached": "300"},
        "[route]": {
            "models": ["assistant"],
            "to": [{"pool": "test"}, {"provider": "api", "model": "m"}],
        },
    }


async def ask(stack: Any) -> None:
    body = {"model": "assistant", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{stack.url}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def lose_the_pool(stack: Any) -> None:
    for market in ("spot", "on-demand"):
        await stack.admin("refuse", times=1_000_000, market=market)
    for node in await stack.nodes():
        await stack.admin("reclaim", node=node, notice_s=0)


async def told(stack: Any, kind: str) -> list[Any]:
    return [event["data"] for event in await stack.events() if event["kind"] == kind]


async def test_a_lost_pool_and_what_its_stand_in_cost_over_kills_of_daemon_and_gateway(
    new_stack: Any,
) -> None:
    async with provider() as api, new_stack(tables(api)) as stack:
        await stack.settled()
        await ask(stack)
        assert not api.billed
        await lose_the_pool(stack)

        async def stands_in() -> Any:
            view = await stack.status()
            return view is not None and view["routes"][0]["stands_in"] == "api"

        await stack.until("the provider stands in", stands_in)

        async def began() -> Any:
            await ask(stack)
            return await told(stack, "FallbackBegan")

        (began_with,) = await stack.until("it is told", began)
        assert began_with["provider"] == "api"
        assert "pool test" in began_with["why"]
        await stack.until_pool("the pool is down", lambda pool: pool["state"] == "down")
        billed = sum(cost(PRICE, usage) for usage in api.billed)

        async def shown() -> Any:
            done = await stack.cli("status")
            return f"its requests for assistant are answered by api, {cents(billed)} today" in done.out

        await stack.until("status says who answers and for how much", shown)

        await stack.kill("daemon")
        done = await stack.cli("routes", "-o", "json")
        assert done.code == 0, done
        view = json.loads(done.out)
        assert (view["source"], view["routes"][0]["stands_in"]) == ("gateway", "api")
        assert round(view["routes"][0]["spent_today_usd"] * PICO) == billed
        await ask(stack)  # routes work without the daemon
        billed = sum(cost(PRICE, usage) for usage in api.billed)

        async def settled() -> Any:  # what a killed gateway had not settled is held for the rest of the day
            done = await stack.cli("routes", "-o", "json")
            return round(json.loads(done.out)["routes"][0]["spent_today_usd"] * PICO) == billed

        await stack.until("all of it is booked", settled)
        await stack.kill("gateway")
        done = await stack.cli("routes", "-o", "json")
        assert done.code == 0, done
        view = json.loads(done.out)
        assert (view["source"], view["routes"][0]["goes_to"]) == ("file", None)
        assert round(view["providers"][0]["spent_today_usd"] * PICO) == billed

        await stack.start("gateway", "daemon")
        await stack.until("the provider stands in again", stands_in)
        await ask(stack)
        await stack.healed()
        await stack.until_pool("the pool is well", lambda pool: pool["state"] == "ok")
        paid_for = len(api.billed)

        bill = sum(cost(PRICE, usage) for usage in api.billed)

        async def over() -> Any:
            await ask(stack)
            done = await stack.cli("routes", "-o", "json")
            route = json.loads(done.out)["routes"][0]
            return (route["goes_to"], route["stands_in"]) == ("pool test", None) and route

        route = await stack.until("the pool answers for itself", over)
        assert len(api.billed) == paid_for
        assert (route["requests_today"], round(route["spent_today_usd"] * PICO)) == (paid_for, bill)
        assert len(await told(stack, "FallbackBegan")) == 1
