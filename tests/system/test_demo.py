"""`orchestrator demo` as people run it: an honest summary, nothing left over, also when it is cut short."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(240)]

PROMISED = {
    "requests",
    "failed",
    "retried",
    "streams_cut",
    "streams_continued",
    "seam_ms",
    "engines_killed",
    "preemptions",
    "preemptions_without_notice",
    "swaps",
    "min_ready",
    "wanted",
    "mean_spot_share",
    "cost_usd",
    "cost_on_demand_usd",
    "notice_to_detached_ms",
    "leaked_nodes",
    "seed",
    "backends",
    "by_provider",
    "provider_usd",
    "lost_pool",
}

Start = Callable[..., "subprocess.Popen[str]"]

LOCAL = ("-m", "orchestrator", "demo")
AWS = (str(Path(__file__).parents[2] / "tools" / "demo_aws.py"),)
CLOUDS = (str(Path(__file__).parents[2] / "tools" / "demo_clouds.py"),)


@pytest.fixture
def demo(marked_processes: Any) -> Iterator[Start]:
    """Starts demos; afterwards nothing of them lives, and what a killed one left on the disk is removed."""
    mark, living = uuid.uuid4().hex, marked_processes
    directory = Path(tempfile.mkdtemp(prefix="orch-"))  # short: sockets lie in it
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, program: Sequence[str] = LOCAL) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, living.variable: mark, "TMPDIR": str(directory)},
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        left = living.after(mark, patience=20.0)
        shutil.rmtree(directory, ignore_errors=True)
        assert left == []


def test_a_short_demo_keeps_its_promises(demo: Start) -> None:
    options = ("--duration", "20", "--nodes", "4", "--rate", "10", "--seed", "3", "--kills", "2")
    process = demo(*options, "--quiet", "-o", "json")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1
    summary: dict[str, Any] = json.loads(out)
    assert set(summary) >= PROMISED
    assert summary["failed"] == 0, summary["failures"]
    assert summary["leaked_nodes"] == 0, summary["leaked"]
    lost = summary["lost_pool"]
    assert summary["streams_cut"] == lost["streams_cut"], "cut where another node could have gone on"
    assert summary["requests"] == summary["answered"] + summary["streams_cut"] > 50
    # a busy machine brings up fewer nodes in this time than may be taken
    assert summary["preemptions_without_notice"] + summary["engines_killed"] >= 3
    assert summary["seam_ms"]["count"] >= summary["streams_continued"]
    assert summary["swaps"] >= 1
    assert summary["wanted"] == 4
    assert lost["nodes"] == 2
    assert lost["by_provider"] > 0 < summary["provider_usd"]
    assert 0 < lost["provider_after_s"] < lost["ready_after_s"] < lost["back_after_s"]
    assert set(summary["backends"]) == {"demo", "small", "api/big-model"}
    assert sum(summary["backends"].values()) == summary["answered"]
    assert summary["backends"]["api/big-model"] == summary["by_provider"] >= lost["by_provider"]
    # So short a demo pays for many starts: no bound but a gross one holds.
    assert 0 < summary["cost_usd"] < 2 * summary["cost_on_demand_usd"]
    assert summary["seed"] == 3


def test_a_short_demo_on_a_stand_in_for_aws_keeps_its_promises(demo: Start) -> None:
    options = ("--duration", "25", "--nodes", "4", "--rate", "8", "--seed", "3", "--quiet", "-o", "json")
    process = demo(*options, program=AWS)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out)
    assert set(summary) >= PROMISED
    assert (summary["failed"], summary["streams_cut"], summary["leaked_nodes"]) == (0, 0, 0)
    assert (summary["by_provider"], summary["provider_usd"], summary["lost_pool"]) == (0, 0, None)
    assert summary["requests"] == summary["answered"] > 50
    assert summary["preemptions_with_notice"] >= 2
    assert summary["min_on_demand"] >= summary["on_demand_floor"] == 2
    assert summary["spot_at_end"] == summary["spot_wanted"] == 2


def test_a_pool_on_two_clouds_loses_one_of_them_and_no_request(demo: Start) -> None:
    pytest.importorskip("azure.mgmt.compute", reason="the extra [azure] is not installed")
    options = ("--duration", "8", "--nodes", "4", "--rate", "6", "--quiet", "-o", "json")
    process = demo(*options, program=CLOUDS)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out)
    assert set(summary) >= PROMISED
    assert (summary["failed"], summary["streams_cut"], summary["leaked_nodes"]) == (0, 0, 0)
    assert 0 < summary["lost_with_azure"] < 4
    assert (summary["carried_by_aws"], summary["azure_is_back"]) == (True, True)
    assert 0 < summary["most_usd_per_hour"] <= summary["cap_usd_per_hour"]
    assert summary["spot_at_end"] == summary["spot_wanted"] == 2


@pytest.mark.parametrize(
    ("number", "program"), [(signal.SIGTERM, LOCAL), (signal.SIGKILL, AWS)], ids=["asked", "killed"]
)
def test_a_demo_that_is_cut_short_leaves_nothing(
    demo: Start, number: signal.Signals, program: Sequence[str]
) -> None:
    """Asked to stop it still sums up; after kill -9 the kernel ends the rest."""
    process = demo("--duration", "300", "--nodes", "1", "--rate", "10", program=program)
    assert process.stderr is not None
    for line in process.stderr:
        if "requests" in line:  # the first line of the load: everything runs
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    if number is signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 0
        assert "leaked nodes        0" in out
