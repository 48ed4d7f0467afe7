"""A wave of launches above EC2's rate: how long it takes, and what of it the pool takes for a refusal.

The daemon, a process of its own, wants many machines at once of the stand-in for AWS, which answers
RequestLimitExceeded to whatever exceeds the bucket that EC2 documents: five launches, two more a second. No
engine runs: only launches are looked at. Exits with 1 when a placement was marked refused, a launch was given
up, or a machine is missing or there twice.

    python bench/launch_wave.py [--nodes 200] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from aws_stage import REGION, STRICT, AwsShim, credentials, free_port, network, queue_of_events, running_shim

from orchestrator.api.client import ControlClient
from orchestrator.demo.play import journal
from orchestrator.demo.processes import Process

POOL, TYPE, TEMPLATE = "wave", "p5.4xlarge", "wave-node"
BURST, RATE = STRICT["run_bucket"]
SETTLE = 2.0  # s
_QUICK = 12  # machines
_CONFIG = """
[daemon]
state_dir = {state}
socket = {socket}
listen = "off"
log_format = "json"
[pool.{pool}]
replicas = {nodes}
model = "simulated"
[pool.{pool}.engine]
kind = "simulated"
allow_simulated = true
[pool.{pool}.health]
boot_timeout = "1h"
[pool.{pool}.limits]
spend_per_hour = "unlimited"
surge = {nodes}
launches_per_minute = {per_minute}
[pool.{pool}.cloud]
kind = "aws"
[pool.{pool}.cloud.aws]
endpoint = {endpoint}
instance_types = ["{type}"]
[pool.{pool}.cloud.aws.regions.{region}]
launch_template = "{template}"
launch_template_version = 1
notice_queue = {queue}
[pool.{pool}.cloud.aws.regions.{region}.subnets]
{subnets}
[pool.{pool}.gateway]
listen = "127.0.0.1:{port}"
"""


async def play(nodes: int, directory: Path, shim: AwsShim) -> dict[str, Any]:
    """One wave; what became of it."""
    shim.order("set", boot=1.0, **STRICT)
    subnets = network(shim, "127.82", TEMPLATE)
    socket = directory / "control.sock"
    config = directory / "pool.toml"
    config.write_text(
        _CONFIG.format(
            state=json.dumps(str(directory / "state")),
            socket=json.dumps(str(socket)),
            pool=POOL,
            nodes=nodes,
            per_minute=10 * nodes,
            port=free_port(),
            endpoint=json.dumps(shim.url),
            type=TYPE,
            region=REGION,
            template=TEMPLATE,
            queue=json.dumps(queue_of_events(shim, "wave-notices")),
            subnets="\n".join(f'{zone} = "{name}"' for zone, name in subnets.items()),
        ),
        encoding="utf-8",
    )
    daemon = Process("daemon", "run", "--config", str(config), directory=directory)
    await daemon.start()
    began, first, last = time.monotonic(), 0.0, 0.0
    try:
        while len(shim.machines(POOL)) < nodes and time.monotonic() - began < 60.0 + 5.0 * nodes / RATE:
            daemon.check()
            await asyncio.sleep(0.25)
            if not first and shim.order("calls").get("RunInstances"):
                first = time.monotonic()
        last = time.monotonic()
        await asyncio.sleep(SETTLE)  # what was answered last is in the journal
        daemon.check()
        events = await journal(ControlClient(socket))
    finally:
        await daemon.stop()
    outcomes = Counter(e["data"]["outcome"] for e in events if e["kind"] == "IntentClosed")
    machines = shim.machines(POOL)
    calls = int(shim.order("calls")["RunInstances"])
    return {
        "nodes": nodes,
        "machines": len(machines),
        "tokens": len({machine["token"] for machine in machines}),
        "seconds": round(last - first, 1),
        "seconds_at_ec2s_rate": (nodes - BURST) / RATE,
        "calls": calls,
        "throttled_by_ec2": calls - len(machines),
        "outcomes": dict(outcomes),
    }


def main() -> int:
    """Play a wave; 0 when nothing was taken for refused and every machine is there once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="twelve machines: shows that it runs")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    nodes = _QUICK if given.quick else given.nodes
    os.environ.update(credentials())
    with tempfile.TemporaryDirectory(prefix="launch-wave-") as directory, running_shim() as shim:
        found = asyncio.run(play(nodes, Path(directory), shim))
    if given.output == "json":
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:22} {value}")
    right = found["machines"] == found["tokens"] == nodes
    return 0 if right and set(found["outcomes"]) <= {"done", "throttled"} else 1


if __name__ == "__main__":
    sys.exit(main())
