"""The journal of a real daemon is replayed: live, after a kill -9, and as a copy on another desk."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

CHANGES = {"daemon": {"record_turns": "1s"}}


async def test_a_running_daemons_turns_are_decided_again_the_same(stack: Any) -> None:
    node = (await stack.a_node("spot"))["id"]
    async with stack.traffic() as traffic:
        await stack.admin("reclaim", node=node, notice_s=4)
        await stack.until_pool("the node is gone", lambda p: node not in {n["id"] for n in p["nodes"]})
        await stack.settled()

        async def written() -> bool:
            drained = [e for e in await stack.events() if e["kind"] == "DrainStarted" and e["node"] == node]
            view = json.loads((await stack.cli("journal", "show", "-o", "json")).out)
            return bool(drained) and (view["last_turn_at"] or 0.0) > drained[-1]["at"]

        await stack.until("the turn that drained the node is on disk", written)
        done = await stack.cli("journal", "replay", "-o", "json")
    assert traffic.report.failures == {}
    assert (done.code, done.err) == (0, "")
    view = json.loads(done.out)
    assert view["turns"] == view["identical"] > 5
    assert (view["differing"], view["unreadable"], view["different"]) == (0, 0, [])
    assert (await stack.status())["daemon"]["journal_ok"] is True


async def test_a_copy_is_replayed_on_another_desk(stack: Any, tmp_path: Path) -> None:
    """After a kill -9 and a restart, in another directory, under another hash seed."""
    await stack.parts["daemon"].kill()
    await stack.start("daemon")
    await stack.settled()
    copy = tmp_path / "incident.db"
    done = await stack.cli("journal", "copy", "--to", str(copy))
    assert (done.code, done.err) == (0, "")
    assert os.listdir(tmp_path) == ["incident.db"]

    def replayed() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", "journal", "replay", str(copy), "-o", "json"],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONHASHSEED": "99"},
        )

    found = await asyncio.to_thread(replayed)
    assert (found.returncode, found.stderr) == (0, "")
    view = json.loads(found.stdout)
    assert view["turns"] == view["identical"] > 5
    assert os.listdir(tmp_path) == ["incident.db"], "a replay left something behind"
