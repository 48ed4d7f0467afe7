"""The gateway is replaced while it serves, with the settings that a pool has: no outage.

One that dies or freezes is one: `test_gateway_lost.py`.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import aiohttp
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.asyncio, pytest.mark.timeout(300)]

PACES = ("tick", "poll_instances", "poll_targets", "poll_offerings", "probe_interval", "probe_timeout")
CHANGES = {
    "daemon": dict.fromkeys(PACES),
    "pool.test.gateway": {"health_interval": None},
    "pool.test.health": dict.fromkeys(("unhealthy_after", "replace_after", "boot_timeout")),
    "pool.test.patience": dict.fromkeys(("stale_after", "vanish_grace", "effect_timeout")),
}


async def test_a_gateway_that_hands_over_is_no_outage(new_stack: Any) -> None:
    async with new_stack(CHANGES) as stack:
        await stack.settled()
        states: list[str] = []

        def seen(pool: Any) -> bool:
            states.append(pool["state"])
            return len(states) > 40

        connector = aiohttp.UnixConnector(str(stack.sockets / "gateway"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post("http://gateway/v1/replace", json={}) as answer,
        ):
            assert answer.status == 200
            heir = (await answer.json())["pid"]
        try:
            await stack.until_pool("a while has passed", seen)
            await stack.turns(10)
            await stack.until_pool("and some more", lambda pool: seen(pool) and pool["state"] == "ok")
        finally:
            os.kill(heir, signal.SIGTERM)
        assert "down" not in states
