"""A changed configuration on a running daemon: taken up or refused with its reason, by command and signal."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


async def test_a_good_one_is_taken_up_and_the_pool_follows(stack: Any) -> None:
    pid = (await stack.status())["daemon"]["pid"]
    stack.configure({"pool.test": {"replicas": 5}})
    done = await stack.cli("reload", "--wait")
    assert (done.code, done.err) == (0, "")
    first, change, *plan = done.out.splitlines()
    assert first == f"{stack.config} is in force."
    assert change.endswith("pool.test.replicas: 4 -> 5")
    assert any("launch" in line for line in plan)
    pool = await stack.settled()
    assert (pool["wanted"], pool["ready"]) == (5, 5)
    stack.configure({"pool.test": {"replicas": 4}})
    os.kill(pid, signal.SIGHUP)
    pool = await stack.until_pool("SIGHUP is heard", lambda pool: pool["wanted"] == 4)
    assert (await stack.settled())["ready"] == 4
    assert (await stack.status())["daemon"]["pid"] == pid


async def test_a_bad_one_is_refused_with_its_reason_and_the_pool_stays(stack: Any) -> None:
    before = await stack.settled()
    good = stack.config.read_text(encoding="utf-8")
    stack.config.write_text(good.replace("replicas = 4", "replicas = 0"), encoding="utf-8")
    done = await stack.cli("reload", "--wait")
    line = 1 + next(n for n, text in enumerate(good.splitlines()) if text.startswith("replicas"))
    reason = f"{stack.config}:{line}: pool.test.replicas: "
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[0].startswith(reason)
    status = await stack.status()
    assert status["daemon"]["config"]["rejected"]["problems"][0].startswith(reason)
    assert "orchestrator_config_last_reload_successful 0.0" in await stack.get(
        stack.monitoring_port, "/metrics"
    )
    stack.config.write_text(good, encoding="utf-8")
    done = await stack.cli("reload", "--wait", "-o", "json")
    assert (done.code, json.loads(done.out)["outcome"]) == (0, "unchanged")
    after = await stack.settled()
    assert [n["id"] for n in after["nodes"]] == [n["id"] for n in before["nodes"]]


async def test_what_needs_a_restart_is_refused_and_said(stack: Any) -> None:
    good = stack.config.read_text(encoding="utf-8")
    stack.config.write_text(good.replace('kind = "simulated"', 'kind = "simulated"\nserved_name = "x"'))
    done = await stack.cli("reload")
    assert done.code == 1
    assert "pool.test.engine.served_name" in done.err
    assert "restart it, which touches no node" in done.err
    stack.config.write_text(good, encoding="utf-8")
    assert (await stack.cli("reload")).code == 0
