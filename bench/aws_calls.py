"""Calls of AWS in a quiet hour, by operation, for pools of several sizes: they must not grow with the pool.

The adapters of the daemon in one region, at the paces that it has by default, for an hour of virtual time in
which nothing happens. The clients are played: they count, and answer in pages as EC2 does, of as many entries
as were asked for at most. Calls that follow a change (a launch, a notice) come on top, one or two for each.

    python bench/aws_calls.py [--sizes 10,100,1000,5000] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cloud.aws.instance_status import InstanceStatusNotices
from cloud.aws.instances import AwsInstances
from cloud.aws.load_balancer import AlbTargetGroup
from cloud.aws.notice_calls import NoticeCalls
from cloud.aws.notice_queue import QueueNotices
from cloud.aws.offerings import AwsOfferings
from cloud.aws.places import POOL_TAG, AwsRegion
from cloud.aws.spot_requests import SpotRequestNotices
from orchestrator.config.tables.aws import AwsTable
from orchestrator.config.tables.daemon import DaemonConfig

HOUR = 3600.0
START = 1_800_000_000.0
PLACE = AwsRegion(
    region="us-east-1",
    subnets={"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
    instance_types=("g6e.12xlarge", "p5.4xlarge"),
    template="lt-0123456789abcdef0",
    template_version="1",
)


class VirtualClock:
    """Time that passes when everybody sleeps: the next one to wake is woken, in order."""

    def __init__(self) -> None:
        self._now = START
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def steady(self) -> float:
        """The same."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until so much time has passed."""
        if seconds <= 0.0:
            await asyncio.sleep(0)
            return
        self._number += 1
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, self._number, woken))
        await woken

    async def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            for _ in range(20):  # whoever was woken goes on until the next sleep
                await asyncio.sleep(0)
            self._sleepers = [s for s in self._sleepers if not s[2].done()]
            if not self._sleepers or min(self._sleepers)[0] > until:
                self._now = until
                return
            first = min(self._sleepers)
            self._sleepers.remove(first)
            self._now = first[0]
            first[2].set_result(None)


class CountingClients:
    """`cloud.aws.clients.AwsClients` of an account with so many machines of the pool."""

    def __init__(self, clock: VirtualClock, size: int) -> None:
        self.region = PLACE.region
        self.calls: Counter[str] = Counter()
        self._clock, self._size = clock, size
        self._machines = [_machine(number) for number in range(size)]

    def share(self) -> CountingClients:
        """Nothing is shared."""
        return self

    async def close(self) -> None:
        """Nothing to close."""

    async def call(self, _lane: Any, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """Count one call, and answer."""
        self.calls[f"{service}.{operation}"] += 1
        if operation == "receive_message":
            await self._clock.sleep(float(parameters["WaitTimeSeconds"]))
        return self._answer(operation)

    async def pages(
        self, _lane: Any, service: str, operation: str, **parameters: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Count a call for each page."""
        page = parameters["MaxResults"]
        if operation != "describe_instances":
            self.calls[f"{service}.{operation}"] += 1
            yield self._answer(operation)
            return
        for at in range(0, max(1, self._size), page):
            self.calls[f"{service}.{operation}"] += 1
            yield {"Reservations": [{"Instances": self._machines[at : at + page]}]}

    def _answer(self, operation: str) -> dict[str, Any]:
        """What an account says in which nothing happens."""
        if operation == "describe_target_groups":
            group = {"TargetGroupArn": "arn:group", "Protocol": "HTTP", "TargetType": "instance"}
            return {"TargetGroups": [group]}
        if operation == "describe_tags":
            return {"TagDescriptions": [{"ResourceArn": "arn:group", "Tags": []}]}
        if operation == "describe_target_health":
            health = [
                {"Target": {"Id": m["InstanceId"], "Port": 8000}, "TargetHealth": {"State": "healthy"}}
                for m in self._machines
            ]
            return {"TargetHealthDescriptions": health}
        if operation == "describe_spot_price_history":
            return {
                "SpotPriceHistory": [
                    {"AvailabilityZone": zone, "InstanceType": kind, "SpotPrice": "1.0", "Timestamp": _at(0)}
                    for zone in PLACE.subnets
                    for kind in PLACE.instance_types
                ]
            }
        if operation == "get_products":
            return {"PriceList": [_product(kind) for kind in PLACE.instance_types]}
        return {}


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(START + seconds, UTC)


def _machine(number: int) -> dict[str, Any]:
    return {
        "InstanceId": f"i-{number:017x}",
        "InstanceType": PLACE.instance_types[0],
        "InstanceLifecycle": "spot",
        "PrivateIpAddress": f"10.0.{number // 250}.{number % 250}",
        "State": {"Name": "running", "Code": 16},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "LaunchTime": _at(-600.0),
        "Tags": [{"Key": POOL_TAG, "Value": "bench"}],
    }


def _product(kind: str) -> str:
    price = {"priceDimensions": {"d": {"unit": "Hrs", "pricePerUnit": {"USD": "2.0"}}}}
    return json.dumps(
        {"product": {"attributes": {"instanceType": kind}}, "terms": {"OnDemand": {"o": price}}}
    )


async def quiet(size: int, seconds: float) -> dict[str, float]:
    """Calls an hour, by operation."""
    clock, daemon, aws = VirtualClock(), DaemonConfig(), AwsTable()
    clients: Any = CountingClients(clock, size)
    calls = NoticeCalls(clients)
    instances = AwsInstances([(clients, PLACE)], clock=clock)
    offerings = AwsOfferings([(clients, PLACE)], clock=clock)

    async def owners(targets: Any) -> Any:
        return {(name, port): name for name, port in targets}

    group = AlbTargetGroup(clients, clock=clock, group="bench", owners=owners)

    async def every(pause: float, look: Callable[[], Awaitable[object]]) -> None:
        while True:
            await look()
            await clock.sleep(pause)

    async def prices() -> None:
        for part in offerings.parts():
            await offerings.list(part)

    async def hear(source: Any) -> None:
        async for _ in source.stream():
            pass

    sources = [
        QueueNotices(calls, clock, url="https://sqs/1/q"),
        SpotRequestNotices(calls, clock, interval=aws.poll_spot_requests),
        InstanceStatusNotices(calls, clock, interval=aws.poll_instance_status),
    ]
    tasks = [
        asyncio.create_task(every(daemon.poll_instances, lambda: instances.list("bench", PLACE.region))),
        asyncio.create_task(every(daemon.poll_offerings, prices)),
        asyncio.create_task(every(daemon.poll_targets, group.observe)),
        *(asyncio.create_task(hear(source)) for source in sources),
    ]
    try:
        await clock.run(START + seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sources[0].close()
    return {name: count * HOUR / seconds for name, count in sorted(clients.calls.items())}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="10,100,1000,5000", help="machines, by commas (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a minute of 10 and 1,000: shows that it runs")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    sizes = [10, 1000] if options.quick else [int(size) for size in options.sizes.split(",")]
    began = time.perf_counter()
    rows = {size: asyncio.run(quiet(size, 60.0 if options.quick else HOUR)) for size in sizes}
    if options.output == "json":
        print(json.dumps({"calls_an_hour": rows, "took_s": round(time.perf_counter() - began, 1)}))
        return 0
    names = sorted({name for row in rows.values() for name in row})
    print(f"{'calls an hour':36}" + "".join(f"{size:>10}" for size in sizes))
    for name in [*names, "all"]:
        found = [row.get(name, 0.0) if name != "all" else sum(row.values()) for row in rows.values()]
        print(f"{name:36}" + "".join(f"{count:10.0f}" for count in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
