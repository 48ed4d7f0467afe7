"""From the arrival of a notice to the gateway's acknowledgement that the node gets no new requests.

A real pool on this machine: local cloud, gateway and daemon in processes of their own, no load. One spot node
after another is reclaimed with notice; the journal tells when the notice arrived and when the acknowledgement
came. The limit is what no daemon with a journal can beat: one durable SQLite commit plus one exchange with
the gateway's control socket, measured in the same run.

    python bench/notice_to_detached.py [--notices 40] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from cloud.clock import SystemClock
from cloud.local.config import LocalCloudConfig, Reclaiming, dump_config
from cloud.local.connection import LocalCloud
from orchestrator.api.client import ControlClient
from orchestrator.demo.options import DemoOptions
from orchestrator.demo.play import journal, pool_is_whole, processes
from orchestrator.demo.scene import POOL, Scene, build
from orchestrator.demo.summary import detachments
from orchestrator.percentile import percentile


async def measure(notices: int, directory: Path) -> dict[str, Any]:
    options = DemoOptions(nodes=8, speed=10.0, quiet=True)
    (directory / "state" / "cloud").mkdir(parents=True)
    scene = build(options, directory)
    cloud_config = LocalCloudConfig(
        state_dir=directory / "state" / "cloud",
        speed=options.speed,
        boot_delay=5.0,
        reclaiming=Reclaiming(notice=300.0),
    )
    dump_config(cloud_config, scene.market)
    async with processes(scene) as running:
        client, cloud = ControlClient(scene.socket), LocalCloud(scene.cloud_socket)
        share = cloud.share()
        try:
            await pool_is_whole(client, running, scene, SystemClock())
            await reclaim_one_by_one(client, cloud, notices)
            found = [d for d in detachments(await journal(client)) if not d.late]
            exchange = await exchange_ms(scene)
        finally:
            await share.close()
    times = [d.ms for d in found]
    commit = commit_ms(directory)
    limit = {share: percentile(exchange, share) + percentile(commit, share) for share in (0.5, 0.99)}
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
        "notices": len(times),
        "ms": {"p50": percentile(times, 0.5), "p90": percentile(times, 0.9), "p99": percentile(times, 0.99)},
        "limit_ms": {"p50": limit[0.5], "p99": limit[0.99]},
        "ratio_p50": percentile(times, 0.5) / limit[0.5],
    }


async def reclaim_one_by_one(client: ControlClient, cloud: LocalCloud, notices: int) -> None:
    """Take one serving spot node at a time and wait until the pool is whole and quiet again."""
    rng = random.Random(1)
    for _ in range(notices):
        while True:
            pool = (await asyncio.to_thread(client.status))["pools"][0]
            quiet = all(n["phase"] == "ready" for n in pool["nodes"])
            spot = [n["id"] for n in pool["nodes"] if n["market"] == "spot" and n["attached"]]
            if quiet and spot and pool["ready"] >= pool["wanted"]:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(rng.uniform(0.2, 0.7))
        await cloud.admin("reclaim", orjson.dumps({"node": rng.choice(spot)}))
        await asyncio.sleep(0.3)


async def exchange_ms(scene: Scene, times: int = 200) -> list[float]:
    """One request and answer over the gateway's control socket, on a warm connection."""
    found = []
    connector = aiohttp.UnixConnector(str(scene.gateway_socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(times):
            began = time.perf_counter()
            async with session.get(f"http://gateway/v1/state?pool={POOL}") as response:
                await response.read()
            found.append((time.perf_counter() - began) * 1000.0)
            await asyncio.sleep(0.005)
    return found


def commit_ms(directory: Path, times: int = 200) -> list[float]:
    """One durable commit, as the journal makes it."""
    found = []
    db = sqlite3.connect(directory / "limit.db")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t (x BLOB)")
    for _ in range(times):
        began = time.perf_counter()
        with db:
            db.execute("INSERT INTO t VALUES (?)", (b"x" * 300,))
        found.append((time.perf_counter() - began) * 1000.0)
        time.sleep(0.005)
    db.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notices", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="3 notices: shows that it runs, measures little")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as directory:
        result = asyncio.run(measure(3 if options.quick else options.notices, Path(directory)))
    if options.output == "json":
        print(json.dumps(result))
        return
    ms, limit = result["ms"], result["limit_ms"]
    print(f"{result['machine']}, load {result['load_average']}")
    print(f"notice to detached   p50 {ms['p50']:.2f} ms  p90 {ms['p90']:.2f} ms  p99 {ms['p99']:.2f} ms")
    print(f"commit + exchange    p50 {limit['p50']:.2f} ms                p99 {limit['p99']:.2f} ms")
    print(f"ratio at p50         {result['ratio_p50']:.1f}  over {result['notices']} notices")


if __name__ == "__main__":
    main()
