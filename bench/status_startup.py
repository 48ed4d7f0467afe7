"""What `orchestrator status` costs: CPU time of the whole process, beside an empty interpreter's.

A daemon with a small pool answers. User and system time of each process are the kernel's own account, so
waiting for the answer does not count. The interpreter itself, in the same run, is the limit.

    python bench/status_startup.py [--runs N] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloud.clock import SystemClock
from orchestrator.api.client import ControlClient
from orchestrator.demo.options import DemoOptions
from orchestrator.demo.play import pool_is_whole, processes
from orchestrator.demo.scene import build

WORDS = {
    "an empty interpreter": ("-c", ""),
    "status -o json": ("-m", "orchestrator", "status", "--no-exit-code", "-o", "json"),
    "status": ("-m", "orchestrator", "status", "--no-exit-code"),
}


async def measure(runs: int, directory: Path) -> dict[str, Any]:
    (directory / "state" / "cloud").mkdir(parents=True)
    scene = build(DemoOptions(nodes=4, quiet=True), directory)
    async with processes(scene) as running:
        await pool_is_whole(ControlClient(scene.socket), running, scene, SystemClock())
        return await asyncio.to_thread(timed, runs, scene.socket)


def timed(runs: int, socket: Path) -> dict[str, Any]:
    """Median CPU milliseconds of each command; they take turns, so that a busy machine is busy for all."""
    spent: dict[str, list[float]] = {name: [] for name in WORDS}
    for _ in range(runs):
        for name, words in WORDS.items():
            spent[name].append(cpu_ms([sys.executable, *words], socket))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
        "runs": runs,
        "cpu_ms": medians,
        "ratio": medians["status"] / medians["an empty interpreter"],
    }


def cpu_ms(command: Sequence[str], socket: Path) -> float:
    """User and system time of one process, milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "ORCHESTRATOR_SOCKET": str(socket)},
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="3 runs: shows that it runs, measures little")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as directory:
        result = asyncio.run(measure(3 if options.quick else options.runs, Path(directory)))
    if options.output == "json":
        print(json.dumps(result))
        return
    print(f"{result['machine']}, load {result['load_average']}, {result['runs']} runs")
    for name, value in result["cpu_ms"].items():
        print(f"{name:<22} {value:6.0f} ms of CPU time")
    print(f"status / interpreter   {result['ratio']:6.1f}")


if __name__ == "__main__":
    main()
