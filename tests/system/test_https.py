"""HTTPS in a whole system: a reload brings it, the daemon goes on seeing its gateway, the doctor looks."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.certificates import Pair, pair

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(240)]

GATEWAY = "pool.test.gateway"


async def ask(stack: Any, made: Pair) -> int:
    """The status of one completion asked for over HTTPS; 0 where no connection comes about."""
    connector = aiohttp.TCPConnector(ssl=made.trust())
    body = {"model": "simulated", "prompt": "x", "max_tokens": 3}
    url = f"https://127.0.0.1:{stack.gateway_port}/v1/completions"
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(url, json=body) as answer,
        ):
            await answer.read()
            return answer.status
    except aiohttp.ClientError:
        return 0


async def examined(stack: Any) -> dict[str, dict[str, str]]:
    """The doctor's last finding of each check."""
    done = await stack.cli("doctor", "--only", "config", "--only", "daemon", "-o", "json")
    return {row["check"]: row for row in json.loads(done.out)["findings"]}


async def test_a_reload_brings_https_and_a_new_certificate_needs_none(new_stack: Any, tmp_path: Path) -> None:
    made = pair(tmp_path).write()
    async with new_stack({"pool.test": {"replicas": 2}}) as stack:
        await stack.settled()
        keys = {"tls_cert_file": str(made.certificate), "tls_key_file": str(made.key)}
        stack.configure({GATEWAY: keys})
        done = await stack.cli("reload")
        assert done.code == 0, done

        async def answered() -> bool:
            return await ask(stack, made) == 200

        await stack.until("the heir answers over HTTPS", answered)
        assert (await examined(stack))["certificate"]["state"] == "ok"
        second = pair(tmp_path, ends=timedelta(days=9, hours=1)).write()

        async def shown() -> bool:
            return await ask(stack, second) == 200

        await stack.until("new connections are shown the new certificate", shown)
        found = (await examined(stack))["certificate"]
        assert (found["state"], "expires in 9d" in found["text"]) == ("warn", True), found
        second.key.write_bytes(made.secret)

        async def refused() -> bool:
            found = (await examined(stack))["file"]
            return found["state"] == "fail" and "the private key is not that" in found["text"]

        await stack.until("the doctor says that the pair does not fit", refused)
        assert await ask(stack, second) == 200
        await stack.settled()  # its self-check goes over TLS: the daemon takes no gateway for dead
        pool = await stack.pool()
        assert pool is not None
        assert pool["state"] == "ok", pool
        stack.end_heirs()


async def test_plain_http_at_the_door_is_told_and_the_pool_is_well(new_stack: Any, tmp_path: Path) -> None:
    made = pair(tmp_path).write()
    keys = {"tls_cert_file": str(made.certificate), "tls_key_file": str(made.key)}
    async with new_stack({"pool.test": {"replicas": 1}, GATEWAY: keys}) as stack:
        await stack.settled()
        assert "ask for https://" in await stack.get(stack.gateway_port, "/v1/models")
        assert await ask(stack, made) == 200
        text = await stack.get(stack.gateway_metrics_port, "/metrics")
        assert 'tls_handshakes_total{result="plain_http"} 1.0' in text
        assert "\norchestrator_gateway_tls_certificate_expires_seconds " in text
