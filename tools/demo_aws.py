"""Play a pool on EC2 on this machine: the daemon as it runs on AWS, against a stand-in for AWS.

Daemon and gateway are processes of their own; boto3 speaks HTTP to the stand-in (tests/support/aws_shim:
moto with what it lacks filled in), where machines, events, queue and spot requests are. An engine runs on a
loopback address behind every running machine, and a load of requests goes through the gateway. Then spot
machines are taken: one with two minutes of notice, a whole zone at once with copies of each message and
messages about others, one without a word, one with 30 seconds left. It ends by itself with a summary.

    python tools/demo_aws.py [--duration 60] [--nodes 10] [--rate 20] [--seed N] [--quiet] [-o json]

Exits with 1 when a promise broke: a request failed, a machine leaked, the on-demand floor did not hold, or
the mix was not restored in the end. It needs the development environment and nothing outside this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from aws_stage import (
    MODEL,
    REGION,
    STRICT,
    TOKENS_PER_SECOND,
    AwsShim,
    EngineProcesses,
    credentials,
    free_port,
    kept,
    network,
    queue_of_events,
    running_shim,
)

from cloud.clock import SystemClock
from orchestrator.api.client import ControlClient
from orchestrator.demo.options import DemoOptions
from orchestrator.demo.play import pool_is_whole, processes, talk, under_load
from orchestrator.demo.processes import ProcessError
from orchestrator.demo.scene import Scene
from orchestrator.demo.summary import text
from orchestrator.logs import configure_logging
from orchestrator.views.api import PoolView

POOL, TYPE, TEMPLATE = "demo", "p5.4xlarge", "demo-node"
NOTICE, LATE = 120.0, 90.0
AT_REST = 20.0  # s; the pool gets three times as long, and ten more, to be whole after the load

_STRANGER = "i-0f0f0f0f0f0f0f0f0"
_WARNING = "EC2 Spot Instance Interruption Warning"
_CONFIG = """
[daemon]
state_dir = "./state"
listen = "off"
log_format = "json"
tick = "500ms"
poll_instances = "500ms"
poll_targets = "500ms"
poll_offerings = "5s"
probe_interval = "500ms"
[pool.{pool}]
replicas = {nodes}
model = "{model}"
[pool.{pool}.engine]
kind = "simulated"
allow_simulated = true
[pool.{pool}.drain]
budget = "10s"
margin = "2s"
settle = "200ms"
[pool.{pool}.back_to_spot]
hold = "5s"
stable = "3s"
[pool.{pool}.placement]
refusal_half_life = "3s"
reclaim_half_life = "3s"
[pool.{pool}.health]
unhealthy_after = "2s"
replace_after = "10s"
boot_timeout = "60s"
[pool.{pool}.limits]
surge = {surge}
launches_per_minute = {launches}
spend_per_hour = "unlimited"
[pool.{pool}.cloud]
kind = "aws"
[pool.{pool}.cloud.aws]
endpoint = "{endpoint}"
instance_types = ["{type}"]
engine_port = {engine_port}
poll_spot_requests = "1s"
[pool.{pool}.cloud.aws.regions.{region}]
launch_template = "{template}"
launch_template_version = 1
notice_queue = "{queue}"
[pool.{pool}.cloud.aws.regions.{region}.subnets]
{subnets}
[pool.{pool}.gateway]
listen = "127.0.0.1:{port}"
drain_margin = "3s"
"""


class Aws:
    """The stand-in as the demo's provider, and what is taken from the pool there, in order."""

    def __init__(self, shim: AwsShim, *, seed: int) -> None:
        self._shim = shim
        self._rng = random.Random(seed)  # noqa: S311 - picks victims of a demo
        self._acts: list[tuple[float, Callable[[PoolView], list[str]]]] = [
            (0.08, self._one),
            (0.25, self._zone),
            (0.45, self._silent),
            (0.60, self._late),
        ]
        self.taken = {True: 0, False: 0}  # with notice, without
        self.asked = self.killed = 0

    async def statistics(self) -> dict[str, Any]:
        """What EC2 has and what was taken."""
        return {
            "live": list(await asyncio.to_thread(self._shim.living, POOL)),
            "orphans": [],
            "preemptions_with_notice": self.taken[True],
            "preemptions_without_notice": self.taken[False],
        }

    def at_rest(self, pool: PoolView) -> bool:
        """Every node is ready and the mix is the one that is wanted."""
        return (
            len(pool["nodes"]) == pool["wanted"] == pool["ready"]
            and pool["spot_ready"] == pool["spot_wanted"]
        )

    async def step(self, progress: float, pool: PoolView) -> None:
        """Take what is due, once the pool serves on spot."""
        if not self._acts or progress < self._acts[0][0]:
            return
        _, act = self._acts[0]
        taken = await asyncio.to_thread(act, pool)
        if taken:
            self._acts.pop(0)
            self.asked += len(taken)

    def _spot(self, pool: PoolView) -> dict[str, str]:
        """Spot nodes that serve and were not taken, with their zones, in an order of chance."""
        found = [
            (n["id"], n["zone"])
            for n in pool["nodes"]
            if n["market"] == "spot" and n["attached"] and "noticed" not in n["conditions"]
        ]
        self._rng.shuffle(found)
        return dict(found)

    def _take(self, nodes: list[str], *, notice: bool = True, **order: object) -> list[str]:
        if nodes:
            self._shim.order("reclaim", nodes=nodes, **order)
        self.taken[notice] += len(nodes)
        return nodes

    def _one(self, pool: PoolView) -> list[str]:
        return self._take(list(self._spot(pool))[:1])

    def _zone(self, pool: PoolView) -> list[str]:
        spot = self._spot(pool)
        if len(spot) < pool["spot_wanted"]:
            return []  # wait until spot is back from the last act
        for detail in ({"instance-id": _STRANGER, "instance-action": "terminate"}, {"instance-id": ["no"]}):
            self._shim.order("tell", kind=_WARNING, detail=detail, node=_STRANGER)
        zone = next(iter(spot.values()))
        return self._take([node for node, place in spot.items() if place == zone], copies=3)

    def _silent(self, pool: PoolView) -> list[str]:
        return self._take(list(self._spot(pool))[:1], notice=False, notice_s=0)

    def _late(self, pool: PoolView) -> list[str]:
        return self._take(list(self._spot(pool))[:1], notice_s=NOTICE, late=LATE)


def build(options: DemoOptions, directory: Path, shim: AwsShim, engine_port: int) -> Scene:
    """Write the configuration; network, launch template, queue and rule are made at the stand-in."""
    subnets, port = network(shim, "127.81", TEMPLATE), free_port()
    config = directory / "pool.toml"
    config.write_text(
        _CONFIG.format(
            pool=POOL,
            nodes=options.nodes,
            model=MODEL,
            surge=max(2, options.nodes // 2),
            launches=20 * options.nodes,
            endpoint=shim.url,
            type=TYPE,
            engine_port=engine_port,
            region=REGION,
            template=TEMPLATE,
            queue=queue_of_events(shim, "demo-notices"),
            subnets="\n".join(f'{zone} = "{name}"' for zone, name in subnets.items()),
            port=port,
        ),
        encoding="utf-8",
    )
    state = directory / "state"
    return Scene(
        directory=directory,
        config=config,
        market=config,
        socket=state / "orchestrator.sock",
        cloud_socket=state / "none",
        gateway_socket=state / "gateway.sock",
        url=f"http://127.0.0.1:{port}",
        model=MODEL,
        tokens=(10, int(2.0 * TOKENS_PER_SECOND)),
        streamed=(10, int(6.0 * TOKENS_PER_SECOND)),
        notice_s=AT_REST,
        drills=0,
        start_timeout=120.0,
    )


async def play(options: DemoOptions, directory: Path, shim: AwsShim) -> dict[str, Any]:
    """One demo from start to summary. Raises ProcessError."""
    talk(options, f"Starting {options.nodes} nodes on a stand-in for AWS in {directory} ...")
    clock, engine_port = SystemClock(), free_port()
    shim.order("set", boot=2.0, end=1.0, **STRICT)
    scene = build(options, directory, shim, engine_port)
    aws, client = Aws(shim, seed=options.seed), ControlClient(scene.socket)
    async with (
        kept(EngineProcesses(shim, engine_port)),
        processes(scene, parts=("gateway", "daemon")) as running,
    ):
        await pool_is_whole(client, running, scene, clock)
        found = await under_load(options, scene, clock, running, client, aws, aws)
    again = f"python tools/demo_aws.py --seed {options.seed} --duration {options.duration:g}"
    again += f" --nodes {options.nodes} --rate {options.rate:g}"
    return {**found, "market": "aws", "replay": again}


def broken(summary: dict[str, Any]) -> list[str]:
    """The promises that did not hold, as sentences."""
    found = []
    if summary["failed"]:
        found.append(f"{summary['failed']} requests failed: {summary['failures']}")
    if summary["streams_cut"]:
        found.append(f"{summary['streams_cut']} streams were cut")
    if summary["leaked_nodes"]:
        found.append(f"machines leaked: {summary['leaked']}")
    if summary["min_on_demand"] < summary["on_demand_floor"]:
        found.append(
            f"{summary['min_on_demand']} on-demand nodes, {summary['on_demand_floor']} are the floor"
        )
    if summary["spot_at_end"] != summary["spot_wanted"]:
        found.append(f"{summary['spot_at_end']} spot nodes at the end, {summary['spot_wanted']} are wanted")
    return found


def main() -> int:
    """Run the demo; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of load")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1, help="which machines are taken")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the summary")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    options = DemoOptions(
        duration=given.duration,
        seed=given.seed,
        nodes=given.nodes,
        speed=1.0,
        rate=given.rate,
        output=given.output,
        quiet=given.quiet,
    )
    configure_logging("auto", "warning")
    os.environ.update(credentials())
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-demo-"))
    try:
        with running_shim() as shim:
            summary = asyncio.run(play(options, directory, shim))
    except ProcessError as error:
        print(f"the demo could not run: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(summary) if options.output == "json" else text(summary).rstrip())
    faults = broken(summary)
    for fault in faults:
        print(f"BROKEN: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
