"""`orchestrator doctor` beside a running pool: it sees its processes, and what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def examined(stack: Any) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code and findings by check."""
    done = await stack.cli("doctor", "-o", "json")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.out)["findings"]:
        found.setdefault(f"{row['group']}/{row['check']}", []).append(row)
    return done.code, found


def of(found: dict[str, list[dict[str, Any]]], check: str) -> set[str]:
    return {row["state"] for row in found[check]}


async def test_a_pool_that_runs_and_parts_of_it_that_do_not(new_stack: Any) -> None:
    async with new_stack({}) as stack:
        await stack.settled()
        code, found = await examined(stack)
        bad = {check: rows for check, rows in found.items() if of(found, check) & {"fail"}}
        assert (code, bad) == (0, {})
        for check in ("daemon/process", "daemon/gateway", "daemon/ports", "state/lease", "state/journal"):
            assert of(found, check) == {"ok"}, found[check]
        pid = stack.parts["daemon"].pid
        assert f"held by pid {pid} on" in found["state/lease"][0]["text"]
        gateway = stack.parts["gateway"].pid
        subjects = [row["subject"] for row in found["host/open-files"]]
        assert subjects == [f"daemon, pid {pid}", f"gateway, pid {gateway}"]
        assert f"pid {pid} answers" in found["daemon/process"][0]["text"]
        assert found["daemon/gateway"][0]["text"] == "it has the daemon's targets, 4 of them"

        command = [word for word in stack.command("doctor", "-o", "json") if word != "--config"][:-1]
        environment = stack.full_environment | {"ORCHESTRATOR_SOCKET": str(stack.sockets / "daemon")}
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env=environment, cwd=stack.directory
        )
        out, _ = await process.communicate()
        rows = json.loads(out)["findings"]
        assert str(stack.config) in next(row["text"] for row in rows if row["group"] == "config")

        await stack.kill("gateway")
        code, found = await examined(stack)
        assert (code, of(found, "daemon/gateway")) == (1, {"fail"})

        os.kill(pid, signal.SIGSTOP)
        try:
            code, found = await examined(stack)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (code, of(found, "daemon/process")) == (1, {"fail"})
        assert f"pid {pid} holds the lease, and does not answer" in found["daemon/process"][0]["text"]

        await stack.stop("daemon")
        code, found = await examined(stack)
        assert (code, of(found, "daemon/process"), of(found, "state/lease")) == (0, {"warn"}, {"ok"})
        assert "free" in found["state/lease"][0]["text"]


async def test_a_node_is_tried_beside_a_running_pool_which_leaves_it_alone(new_stack: Any) -> None:
    async with new_stack({}) as stack:
        await stack.settled()
        before = {node["id"] for node in json.loads((await stack.cli("nodes", "-o", "json")).out)["nodes"]}
        done = await stack.cli("doctor", "--try-node", "on-demand", "--yes", "-o", "json")
        rows = json.loads(done.out)["findings"]
        assert (done.code, [row["state"] for row in rows]) == (0, ["ok"] * 8), done
        assert [row["subject"] for row in rows[-2:]] == ["first token", "ended"]
        tried = rows[1]["text"]
        after = {node["id"] for node in json.loads((await stack.cli("nodes", "-o", "json")).out)["nodes"]}
        assert (after, tried in after) == (before, False)
