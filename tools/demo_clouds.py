"""Play a pool on two clouds on this machine, and lose one of them.

Daemon and gateway are processes of their own; they speak to stand-ins for AWS (moto with what it lacks
filled in) and for Azure, where the machines are. An engine runs on a loopback address behind every running
machine, and a load of requests goes through the gateway. Then Azure goes dark: no call is answered any more,
and its machines end without a word. AWS carries the pool. Then Azure is back. It ends by itself with a
summary.

    python tools/demo_clouds.py [--duration 60] [--nodes 6] [--rate 12] [--seed N] [--quiet] [-o json]

The configuration vouches that all nodes run the same (`engine.build`), so streams go on over both clouds.

Exits with 1 when a promise broke: a request failed or a stream was cut, a machine leaked on either cloud, the
spend cap was passed, AWS alone did not carry the pool, or the pool was not whole in the end. It needs the
development environment and nothing outside this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from aws_stage import (
    MODEL,
    STRICT,
    TOKENS_PER_SECOND,
    AwsShim,
    EngineProcesses,
    credentials,
    free_port,
    kept,
    network,
    running_shim,
)
from aws_stage import REGION as AWS_REGION
from azure_stage import GROUP, IMAGE, SIZE, SSH_KEY, SUBSCRIPTION, AzureStandIn, running_stand_in, subnet
from azure_stage import REGION as AZURE_REGION

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
SPOT, ON_DEMAND = 1.5, 3.7  # USD/h of a machine, about the same on both clouds
AT_REST = 20.0  # s; the pool gets three times as long, and ten more, to be whole after the load
GOES, RETURNS = 0.15, 0.65
"""Shares of the demo's time at which Azure goes dark and is back, the latter once AWS carries the pool."""

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
probe_timeout = "2s"
call_timeout = "5s"
[pool.{pool}]
replicas = {nodes}
model = "{model}"
[pool.{pool}.engine]
kind = "simulated"
allow_simulated = true
build = "demo"
[pool.{pool}.drain]
budget = "6s"
margin = "2s"
settle = "200ms"
[pool.{pool}.back_to_spot]
hold = "5s"
stable = "3s"
[pool.{pool}.placement]
refusal_half_life = "3s"
reclaim_half_life = "3s"
[pool.{pool}.patience]
stale_after = "4s"
[pool.{pool}.health]
unhealthy_after = "2s"
replace_after = "5s"
boot_timeout = "60s"
[pool.{pool}.limits]
surge = {nodes}
launches_per_minute = {launches}
spend_per_hour = "{cap:.2f}"
[pool.{pool}.cloud]
kind = ["aws", "azure"]
[pool.{pool}.cloud.aws]
endpoint = "{aws}"
instance_types = ["{type}"]
engine_port = {engine_port}
poll_spot_requests = "1s"
[pool.{pool}.cloud.aws.regions.{aws_region}]
launch_template = "{template}"
launch_template_version = 1
[pool.{pool}.cloud.aws.regions.{aws_region}.subnets]
{subnets}
[pool.{pool}.cloud.azure]
endpoint = "{azure}"
prices_endpoint = "{azure}/api/retail/prices"
subscription = "{subscription}"
instance_types = ["{size}"]
image = "{image}"
ssh_public_key = "{ssh_key}"
engine_port = {engine_port}
[pool.{pool}.cloud.azure.regions.{azure_region}]
resource_group = "{group}"
subnet = "{subnet}"
zones = ["1", "2"]
[pool.{pool}.gateway]
listen = "127.0.0.1:{port}"
"""


class Clouds:
    """The stand-ins as the demo's providers, and what is taken from the pool there.

    `lost`: how many machines Azure ended; `carried`: whether AWS alone had a whole pool while Azure was dark;
    `returned`: whether Azure is back; `most`: the highest cost per hour that was seen, in US dollars.
    """

    def __init__(self, aws: AwsShim, azure: AzureStandIn) -> None:
        self._aws, self._azure = aws, azure
        self.lost, self.carried, self.returned, self.most = 0, False, False, 0.0
        self.asked = self.killed = 0

    @property
    def dark(self) -> bool:
        """Whether Azure is dark now."""
        return self.lost > 0 and not self.returned

    async def statistics(self) -> dict[str, Any]:
        """What both clouds have, and what was taken."""
        on_aws = await asyncio.to_thread(self._aws.living, POOL)
        on_azure = await asyncio.to_thread(self._azure.living, POOL)
        return {
            "live": [*on_aws, *on_azure],
            "orphans": [],
            "preemptions_with_notice": 0,
            "preemptions_without_notice": self.lost,
        }

    def at_rest(self, pool: PoolView) -> bool:
        """Every node is ready and the mix is the one that is wanted."""
        return (
            len(pool["nodes"]) == pool["wanted"] == pool["ready"]
            and pool["spot_ready"] == pool["spot_wanted"]
        )

    async def step(self, progress: float, pool: PoolView) -> None:
        """Do what is due, and note what the pool is like meanwhile."""
        self.most = max(self.most, pool["cost_per_hour"] or 0.0)
        if not self.lost:
            on_azure = [node for node in pool["nodes"] if node["provider"] == "azure"]
            if progress >= GOES and on_azure:
                self.lost = self.asked = await asyncio.to_thread(self._go_dark)
        elif self.dark:
            there = [n for n in pool["nodes"] if n["provider"] == "aws" and n["attached"] and n["healthy"]]
            self.carried = self.carried or len(there) >= pool["wanted"]
            if progress >= RETURNS and self.carried:
                await asyncio.to_thread(self._come_back)
                self.returned = True

    def _go_dark(self) -> int:
        """No call is answered from now on, and the machines end."""
        self._azure.order("set", dark=[AZURE_REGION], dark_subscription=True, dark_for=8.0)
        machines = list(self._azure.living(POOL))
        for node in machines:
            self._azure.order("evict", node=node)
        return len(machines)

    def _come_back(self) -> None:
        self._azure.order("set", dark=[], dark_subscription=False)


def build(
    options: DemoOptions, directory: Path, aws: AwsShim, azure: AzureStandIn, engine_port: int
) -> Scene:
    """Write the configuration; network and launch template are made at the stand-in for AWS."""
    subnets, port = network(aws, "127.82", TEMPLATE), free_port()
    config = directory / "pool.toml"
    config.write_text(
        _CONFIG.format(
            pool=POOL,
            nodes=options.nodes,
            model=MODEL,
            launches=20 * options.nodes,
            cap=cap(options),
            aws=aws.url,
            azure=azure.url,
            type=TYPE,
            size=SIZE,
            engine_port=engine_port,
            aws_region=AWS_REGION,
            azure_region=AZURE_REGION,
            template=TEMPLATE,
            subnets="\n".join(f'{zone} = "{name}"' for zone, name in subnets.items()),
            subscription=SUBSCRIPTION,
            image=IMAGE,
            ssh_key=SSH_KEY,
            group=GROUP,
            subnet=subnet(),
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


def cap(options: DemoOptions) -> float:
    """USD/h: a pool on demand as a whole, beside what a cloud that nobody can see may still cost."""
    return 2.0 * options.nodes * ON_DEMAND


async def play(options: DemoOptions, directory: Path, aws: AwsShim, azure: AzureStandIn) -> dict[str, Any]:
    """One demo from start to summary. Raises ProcessError."""
    talk(options, f"Starting {options.nodes} nodes on stand-ins for AWS and Azure in {directory} ...")
    clock, engine_port = SystemClock(), free_port()
    prices = {"spot_prices": {TYPE: SPOT}, "on_demand_prices": {TYPE: ON_DEMAND}}
    aws.order("set", boot=2.0, end=1.0, **prices, **STRICT)
    azure.order("set", boot=2.0, turn=0.5, prices={SIZE: [ON_DEMAND, SPOT]})
    scene = build(options, directory, aws, azure, engine_port)
    clouds, client = Clouds(aws, azure), ControlClient(scene.socket)
    async with (
        kept(EngineProcesses(aws, engine_port)),
        kept(EngineProcesses(azure, engine_port)),
        processes(scene, parts=("gateway", "daemon")) as running,
    ):
        await pool_is_whole(client, running, scene, clock)
        found = await under_load(
            options, scene, clock, running, client, clouds, clouds, owed=lambda: not clouds.returned
        )
    again = f"python tools/demo_clouds.py --seed {options.seed} --duration {options.duration:g}"
    again += f" --nodes {options.nodes} --rate {options.rate:g}"
    return {
        **found,
        "market": "aws and azure",
        "replay": again,
        "lost_with_azure": clouds.lost,
        "carried_by_aws": clouds.carried,
        "azure_is_back": clouds.returned,
        "most_usd_per_hour": round(clouds.most, 4),
        "cap_usd_per_hour": cap(options),
    }


def broken(summary: dict[str, Any]) -> list[str]:
    """The promises that did not hold, as sentences."""
    found = []
    if summary["failed"]:
        found.append(f"{summary['failed']} requests failed: {summary['failures']}")
    if summary["streams_cut"]:
        found.append(f"{summary['streams_cut']} streams were cut")
    if summary["leaked_nodes"]:
        found.append(f"machines leaked: {summary['leaked']}")
    if summary["most_usd_per_hour"] > summary["cap_usd_per_hour"]:
        found.append(f"${summary['most_usd_per_hour']:.2f} an hour passed the cap")
    if not summary["lost_with_azure"]:
        found.append("nothing of the pool was on Azure, so nothing was lost")
    elif not summary["carried_by_aws"]:
        found.append("AWS alone did not carry the pool while Azure was dark")
    elif not summary["azure_is_back"]:
        found.append("the load ended before Azure was back")
    if summary["spot_at_end"] != summary["spot_wanted"]:
        found.append(f"{summary['spot_at_end']} spot nodes at the end, {summary['spot_wanted']} are wanted")
    return found


def main() -> int:
    """Run the demo; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of load")
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1, help="which requests are sent")
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
        with running_shim() as aws, running_stand_in() as azure:
            summary = asyncio.run(play(options, directory, aws, azure))
    except ProcessError as error:
        print(f"the demo could not run: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(summary) if options.output == "json" else _text(summary))
    faults = broken(summary)
    for fault in faults:
        print(f"BROKEN: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _text(summary: dict[str, Any]) -> str:
    """The summary for people."""
    carried = "carried" if summary["carried_by_aws"] else "did not carry"
    back = "is back" if summary["azure_is_back"] else "is not back"
    lost, most, allowed = (
        summary[key] for key in ("lost_with_azure", "most_usd_per_hour", "cap_usd_per_hour")
    )
    return (
        f"{text(summary)}Azure went dark with {lost} machines; AWS alone {carried} the pool; Azure {back}. "
        f"At most ${most:.2f} an hour, the cap is ${allowed:.2f}."
    )


if __name__ == "__main__":
    sys.exit(main())
