"""A changed configuration on a running daemon: taken up or refused with its reason, by command and signal."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

# So that a pool of 4,000 that is taken back a moment later has started a dozen engines, and not a hundred.
CHANGES = {"pool.test.limits": {"launches_per_minute": 15}}


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
    stack.config.write_text(good.replace("replicas = 4", "replicas = -1"), encoding="utf-8")
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


async def test_one_digit_too_many_is_refused_with_its_price_and_taken_back_by_a_word(stack: Any) -> None:
    await stack.settled()
    force = f"`orchestrator reload --force --config {stack.config}`"
    stack.configure({"pool.test": {"replicas": 4000}})
    for words in (("--dry-run",), ("--wait",)):
        done = await stack.cli("reload", *words)
        assert (done.code, done.out.count("\n")) == (1, 1)
        assert (
            "the pool would grow to more than twice the size in force: 4 -> 4000 nodes, about $" in done.err
        )
        assert " an hour, at most $" in done.err
        assert force in done.err
    assert (await stack.settled())["wanted"] == 4
    done = await stack.cli("reload", "--wait", "--force")
    assert (done.code, done.err) == (0, "")
    assert "  size: 4 -> 4000 nodes, about $" in done.out
    stack.configure({"pool.test": {"replicas": 4}})
    done = await stack.cli("reload", "--wait")
    assert (done.code, done.err) == (0, "")
    pool = await stack.settled()
    assert (pool["wanted"], pool["ready"]) == (4, 4)


async def test_a_daemon_that_starts_with_such_a_file_keeps_the_number_before_and_says_so(stack: Any) -> None:
    before = await stack.settled()
    stack.configure({"pool.test": {"replicas": 4000}})
    await stack.stop("daemon")
    await stack.start("daemon")
    pool = await stack.settled()
    assert (pool["wanted"], pool["ready"]) == (4, 4)
    assert [node["id"] for node in pool["nodes"]] == [node["id"] for node in before["nodes"]]
    done = await stack.cli("status")
    assert "4 replicas stay wanted and all else in the file is in force" in " ".join(done.out.split())
    assert "the configuration was not taken up" in (await stack.cli("events")).out
    assert "orchestrator_config_last_reload_successful 0.0" in await stack.get(
        stack.monitoring_port, "/metrics"
    )
    stack.configure({"pool.test": {"replicas": 4}})
    assert (await stack.cli("reload")).code == 0
    assert "stay wanted" not in (await stack.cli("status")).out
