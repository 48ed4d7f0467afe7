"""Spot is refused everywhere: clients are served, on demand only, and the pool says what that is."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(240)]


async def test_all_on_demand_is_a_state_until_spot_is_back(new_stack: Any) -> None:
    async with new_stack() as stack:
        await stack.settled()
        await stack.admin("refuse", times=1_000_000, market="spot")
        for node in (await stack.nodes()).values():
            if node["market"] == "spot":
                await stack.admin("reclaim", node=node["id"], notice_s=0)
        await stack.until_pool("all is on demand", lambda pool: pool["state"] == "all-on-demand")
        done = await stack.cli("status")
        assert done.code == 8
        assert done.out.startswith("test  ALL-ON-DEMAND  4/4 serving  4 ready  spot 0")
        assert "% saved" not in done.out
        assert "! no spot nodes ready for " in done.out
        assert "spot cannot be had: all on demand; next try " in done.out
        page = await stack.get(stack.monitoring_port, "/readyz")
        assert " 200 " in page.partition("\r\n")[0]
        states: list[str] = []
        refusals = len([e for e in await stack.events() if e["kind"] == "IntentClosed"])

        async def tried_again() -> bool:
            states.append((await stack.pool())["state"])
            closed = len([e for e in await stack.events() if e["kind"] == "IntentClosed"])
            return closed >= refusals + 6

        await stack.until("spot is tried some more times", tried_again)
        assert set(states) == {"all-on-demand"}, "a try does not end it"
        await stack.admin("heal")
        await stack.until_pool("spot is back", lambda pool: pool["state"] == "ok")
        await stack.settled()
        done = await stack.cli("status")
        assert (done.code, "spot cannot be had" in done.out) == (0, False)
