"""Routes over real processes: a whole pool is lost, and routes change under load; no request is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import route_fallback

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

REQUESTS = 900


async def test_the_loss_of_every_node_costs_no_request_while_the_daemon_is_dead(tmp_path: Path) -> None:
    """While it lives, the quick run of `bench/route_fallback.py` plays the same, and judges how soon."""
    row = await route_fallback.measure(tmp_path, REQUESTS, daemon=False)
    assert row["failed"] == 0, row
    assert row["nodes_killed"] == 4
    assert row["requests"] >= REQUESTS
    assert row["answered_by"]["api"] > 0
    assert row["answered_by"]["pool"] > 0


async def test_new_routes_cost_no_request_and_no_open_stream(tmp_path: Path) -> None:
    async with route_fallback.pool_with_route(tmp_path) as stack, aiohttp.ClientSession() as session:
        url = f"{stack.url}/v1/chat/completions"

        def body(model: str, tokens: int, *, stream: bool = False) -> dict[str, Any]:
            said = [{"role": "user", "content": "hi"}]
            return {"model": model, "messages": said, "max_tokens": tokens, "stream": stream}

        load, heir = route_fallback.Load(stack.url), 0
        sending = asyncio.create_task(load.run())
        try:
            async with session.post(url, json=body("assistant", 400, stream=True)) as stream:
                assert await stream.content.readline()
                async with session.post(url, json=body("helper", 1)) as answer:
                    assert answer.status == 404
                    assert "did you mean" not in json.loads(await answer.text())["error"]["message"]
                text = stack.config.read_text().replace('["assistant"]', '["assistant", "helper"]')
                stack.config.write_text(text)
                done = await stack.cli("gateway", "--replace")
                assert done.code == 0, done
                heir = int(done.out.split()[1])
                before = load.sent

                async def served() -> bool:
                    async with session.post(url, json=body("helper", 1)) as answer:
                        return answer.status == 200 and '"model":"helper"' in await answer.text()

                await stack.until("the new route is served", served)
                rest = await stream.text()
                assert rest.endswith("data: [DONE]\n\n")
            await stack.until("requests go on", lambda: _more(load, before))
        finally:
            load.enough.set()
            await sending
            if heir:
                os.kill(heir, signal.SIGTERM)
        assert load.seen.failures == []
        assert load.seen.ends["stream cut, typed"] == 0


async def _more(load: route_fallback.Load, before: int) -> bool:
    return load.sent > before + 200
