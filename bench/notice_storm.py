"""A thousand interruption messages at once: how soon every node is detached, and what calls of AWS it takes.

The daemon runs on the stand-in for AWS (tests/support/aws_shim), a process of its own: notices come through
a real SQS queue of moto, targets leave a target group of ELBv2, boto3 speaks to both over HTTP. Machines are
listed by the stand-in itself, since moto takes seconds of CPU to describe a thousand; engines are played.

1. A storm: all messages can be received at one time, and the clock starts when the first is heard. The limit
   is the server's own: the same messages received and deleted by bare boto3 in as many threads as the daemon
   polls with, in the same run.
2. Steady state: the calls of a minute in which nothing happens, by kind, for pools of several sizes.
3. Lists that hang: from a message in the queue to the detachment, with lists of machines answered and not.

    python bench/notice_storm.py [--messages 1000] [--sizes 10,100,1000] [--steady 60] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from aws_stage import (
    REGION,
    ZONES,
    AwsShim,
    credentials,
    network,
    queue_of_events,
    running_shim,
    target_group,
)

from cloud.clock import SystemClock
from cloud.ports import EngineCapabilities, EngineCommand, EngineSpec
from orchestrator.config.load import build_config
from orchestrator.daemon.daemon import Daemon
from orchestrator.logs import configure_logging
from orchestrator.percentile import percentile
from orchestrator.wiring.ports import connect
from policies.model import EngineReading, TargetPhase
from policies.records import Memory

POOL, TYPE, TEMPLATE, QUEUE = "storm", "p5.4xlarge", "storm-node", "storm"
POLLERS = 2
PATIENCE = 600.0
SPOT_SHARE = 0.9


class PlayedEngine:
    """An engine that is always ready and has nothing to do: a thousand real ones need a larger machine."""

    name = "simulated"
    capabilities = EngineCapabilities(tasks=frozenset({"generate"}))

    def command(self, _spec: EngineSpec) -> EngineCommand:
        """Nothing starts it."""
        return EngineCommand(argv=("true",))

    async def probe(self, node: str, _address: str, _previous: EngineReading | None) -> EngineReading:
        """Ready."""
        return EngineReading(node=node, at=SystemClock().now(), ready=True, ok=True)

    async def close(self) -> None:
        """Nothing to close."""


class Storm:
    """One pool of furnished machines with its daemon in this process."""

    def __init__(self, shim: AwsShim, daemon: Daemon, nodes: list[str], spot: int, queue: str) -> None:
        self.shim, self.daemon, self.nodes, self.queue = shim, daemon, nodes, queue
        self.spot = nodes[:spot]
        self._sqs = shim.client("sqs")

    def active(self, nodes: list[str]) -> int:
        """How many of these nodes are targets, by what the balancer acknowledged."""
        held = self._memory.targets.values()
        return sum(any(h.get(node) is TargetPhase.ACTIVE for h in held) for node in nodes)

    @property
    def _memory(self) -> Memory:
        """What the daemon remembers now."""
        loop = self.daemon.runs[POOL].loop
        return loop.memory if loop is not None else Memory()

    async def first_is_heard(self) -> float:
        """Wait for the first notice of any node; the instant."""
        await until(lambda: any(record.notices for record in self._memory.nodes.values()))
        return time.perf_counter()

    async def detached(self, nodes: list[str]) -> None:
        """Wait until none of these nodes is a target."""
        await until(lambda: self.active(nodes) == 0)

    async def calls(self) -> Counter[str]:
        """Calls of AWS since the stand-in began, by action; those of this script are left out."""
        found = Counter(await asyncio.to_thread(self.shim.order, "calls"))
        for own in ("SendMessageBatch", "GetQueueAttributes", "CreateQueue", "GetQueueUrl"):
            found.pop(own, None)
        return found

    async def hold(self, action: str) -> None:
        """Calls of this action hang from now on; returns once one does."""
        self.shim.order("fault", action=action, kind="hold", times=1_000_000)
        before = (await self.calls())[action]

        async def arrived() -> bool:
            return (await self.calls())[action] > before

        await until(arrived)

    async def send(self, nodes: list[str], *, within: float = 0.0) -> float:
        """An interruption message for each node, all to be received at one time and not before it.

        That is `within` seconds from now; returns how many seconds sending took.
        """
        began = time.perf_counter()

        def work() -> None:
            for at in range(0, len(nodes), 10):
                delay = max(0, round(began + within - time.perf_counter()))
                entries = [
                    {"Id": str(n), "MessageBody": warning(node), "DelaySeconds": delay}
                    for n, node in enumerate(nodes[at : at + 10])
                ]
                self._sqs.send_message_batch(QueueUrl=self.queue, Entries=entries)

        await asyncio.to_thread(work)
        return time.perf_counter() - began

    async def empty(self) -> bool:
        """Whether no message is in the queue, nor in flight."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await asyncio.to_thread(
            self._sqs.get_queue_attributes, QueueUrl=self.queue, AttributeNames=names
        )
        return all(int(answer["Attributes"][name]) == 0 for name in names)


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition, plain or awaitable, is true. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = holds()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.002)


def warning(node: str) -> str:
    """The event as EventBridge writes it."""
    return json.dumps(
        {
            "version": "0",
            "id": f"event-{node}",
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "source": "aws.ec2",
            "account": "123456789012",
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": REGION,
            "resources": [f"arn:aws:ec2:{REGION}:123456789012:instance/{node}"],
            "detail": {"instance-id": node, "instance-action": "terminate"},
        }
    )


@contextlib.asynccontextmanager
async def running(shim: AwsShim, subnets: dict[str, str], size: int, spot: int) -> AsyncIterator[Storm]:
    """A pool of that size, so many on spot, all of it in the target group; nothing can be launched."""
    shim.order("reset")
    shim.order("set", capacity={f"{m}:{TYPE}:{zone}": 0 for m in ("spot", "on-demand") for zone in subnets})
    nodes = shim.order(
        "furnish", pool=POOL, spot=spot, on_demand=size - spot, instance_type=TYPE, zone=ZONES[0]
    )["machines"]
    queue = queue_of_events(shim, QUEUE)
    target_group(shim, POOL)
    with tempfile.TemporaryDirectory(prefix="storm-") as directory:
        config = build_config(tables(shim.url, subnets, queue, size, spot), base=directory)
        ports = replace(connect(config, SystemClock()), engine=PlayedEngine())
        daemon = Daemon(config, connect=lambda *_: ports, listen=False)
        await daemon.start()
        storm = Storm(shim, daemon, nodes, spot, queue)
        try:
            await until(lambda: storm.active(nodes) == size)
            yield storm
        finally:
            shim.order("release")
            await daemon.stop()


def tables(url: str, subnets: dict[str, str], queue: str, size: int, spot: int) -> dict[str, Any]:
    """The configuration, at the default paces of the daemon."""
    return {
        "daemon": {"state_dir": "state", "listen": "off"},
        "pool": {
            POOL: {
                "replicas": size,
                "spot_share": spot / size,
                "model": "simulated",
                "engine": {"kind": "simulated", "allow_simulated": True},
                "drain": {"settle": "25s", "min_serving": "0%"},
                "limits": {"spend_per_hour": "unlimited"},
                "cloud": {
                    "kind": "aws",
                    "aws": {
                        "endpoint": url,
                        "instance_types": [TYPE],
                        "target_group": POOL,
                        "regions": {
                            REGION: {
                                "launch_template": TEMPLATE,
                                "launch_template_version": 1,
                                "notice_queue": queue,
                                "subnets": subnets,
                            }
                        },
                    },
                },
            }
        },
    }


# -- 1. a storm -------------------------------------------------------------------------------------


async def storm(shim: AwsShim, subnets: dict[str, str], messages: int) -> dict[str, Any]:
    """All messages at once, for as many nodes."""
    size = messages + max(2, messages // 10)
    async with running(shim, subnets, size, messages) as pool:
        limit, sending = await server_limit(pool)
        within = 2.0 * sending + 3.0
        due = time.perf_counter() + within
        await pool.send(pool.spot, within=within)
        await asyncio.sleep(due - 0.7 - time.perf_counter())  # delays are whole seconds
        before = await pool.calls()
        began = await pool.first_is_heard()
        await pool.detached(pool.spot)
        detached = time.perf_counter() - began
        await until(pool.empty)
        heard = time.perf_counter() - began
        calls = await pool.calls() - before
    return {
        "messages": messages,
        "messages_per_s": messages / heard,
        "limit_messages_per_s": limit,
        "ratio": limit * heard / messages,
        "all_detached_s": detached,
        "calls": dict(calls.most_common()),
        "calls_per_message": sum(calls.values()) / messages,
    }


async def server_limit(pool: Storm) -> tuple[float, float]:
    """Messages a second that bare boto3 receives and deletes from a queue of the same length, and the seconds
    that sending them took."""
    sqs = pool.shim.client("sqs")
    held, pool.queue = pool.queue, sqs.create_queue(QueueName="limit")["QueueUrl"]
    sending = await pool.send(pool.spot)

    def work() -> None:
        mine = pool.shim.client("sqs")
        while found := mine.receive_message(
            QueueUrl=pool.queue, MaxNumberOfMessages=10, WaitTimeSeconds=0
        ).get("Messages"):
            entries = [
                {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(found)
            ]
            mine.delete_message_batch(QueueUrl=pool.queue, Entries=entries)

    began = time.perf_counter()
    with ThreadPoolExecutor(POLLERS) as threads:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, work) for _ in range(POLLERS)))
    rate = len(pool.spot) / (time.perf_counter() - began)
    sqs.delete_queue(QueueUrl=pool.queue)
    pool.queue = held
    return rate, sending


# -- 2. steady state --------------------------------------------------------------------------------


async def steady(shim: AwsShim, subnets: dict[str, str], size: int, seconds: float) -> dict[str, float]:
    """Calls a minute while nothing happens, by kind."""
    async with running(shim, subnets, size, int(size * SPOT_SHARE)) as pool:
        await asyncio.sleep(2.0)  # what followed the start is over
        before = await pool.calls()
        await asyncio.sleep(seconds)
        calls = await pool.calls() - before
    return {action: count * 60.0 / seconds for action, count in sorted(calls.items())}


# -- 3. lists that hang -----------------------------------------------------------------------------


async def one_by_one(
    shim: AwsShim, subnets: dict[str, str], notices: int, *, held: bool
) -> dict[str, float | None]:
    """From a message in the queue to its node's detachment, in milliseconds."""
    times = []
    async with running(shim, subnets, 2 * notices + 2, 2 * notices) as pool:
        if held:
            await pool.hold("DescribeInstances")
        for node in pool.spot[:notices]:
            await pool.send([node])
            began = time.perf_counter()
            await pool.detached([node])
            times.append((time.perf_counter() - began) * 1000.0)
    return {"p50": percentile(times, 0.5), "most": max(times)}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    with running_shim() as shim:
        subnets = network(shim, "127.80", TEMPLATE)
        result = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "load_average": round(os.getloadavg()[0], 2),
            "storm": await storm(shim, subnets, options.messages),
            "steady": {str(n): await steady(shim, subnets, n, options.steady) for n in options.sizes},
            "lists_answered_ms": await one_by_one(shim, subnets, options.notices, held=False),
            "lists_held_ms": await one_by_one(shim, subnets, options.notices, held=True),
        }
    return result


def show(result: dict[str, Any]) -> None:
    """The figures for people."""
    found = result["storm"]
    print(f"{result['machine']}, load {result['load_average']}")
    print(f"{found['messages']} messages at once")
    print(f"  heard and deleted    {found['messages_per_s']:.0f} messages/s")
    print(f"  limit: bare boto3    {found['limit_messages_per_s']:.0f} messages/s")
    print(f"  ratio                {found['ratio']:.2f}")
    print(f"  all detached after   {found['all_detached_s']:.2f} s")
    calls = ", ".join(f"{action} {count}" for action, count in found["calls"].items())
    print(f"  calls                {found['calls_per_message']:.2f} a message: {calls}")
    sizes = list(result["steady"])
    print(f"{'calls a minute, steady':<36}" + "".join(f"{size:>8} nodes" for size in sizes))
    for action in sorted({a for calls in result["steady"].values() for a in calls}):
        row = "".join(f"{result['steady'][size].get(action, 0.0):>14.0f}" for size in sizes)
        print(f"  {action:<34}{row}")
    for name, key in (("answered", "lists_answered_ms"), ("held", "lists_held_ms")):
        ms = result[key]
        print(f"message to detached, lists {name:<9} p50 {ms['p50']:.1f} ms, at most {ms['most']:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--sizes", default="10,100,1000", help="nodes of the pools in steady state")
    parser.add_argument("--steady", type=float, default=60.0, help="seconds of steady state for each size")
    parser.add_argument("--notices", type=int, default=30, help="notices one by one, for each kind of list")
    parser.add_argument("--quick", action="store_true", help="40 messages, 3 s, one size: shows that it runs")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.sizes, options.steady, options.notices = 40, "10", 3.0, 3
    options.sizes = [int(size) for size in options.sizes.split(",")]
    os.environ.update(credentials())
    configure_logging("json", "error")
    result = asyncio.run(measure(options))
    if options.output == "json":
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
