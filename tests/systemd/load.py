"""Requests at a gateway until standard input ends; then what became of them, as JSON.

    python load.py URL RATE < PIPE

Prints one line with the number of answers whenever it has changed, and the report as the last line.
"""

from __future__ import annotations

import asyncio
import json
import sys

from cloud.clock import SystemClock
from orchestrator.demo.load import Load


async def main() -> None:
    url, rate = sys.argv[1], float(sys.argv[2])
    load = Load(url=url, model="simulated", rate=rate, tokens=(20, 80), seed=1, clock=SystemClock())
    stop = asyncio.Event()
    running = asyncio.create_task(load.run(stop))
    reading = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    shown = -1
    while not reading.done():
        if load.report.answered != shown:
            shown = load.report.answered
            print(shown, flush=True)
        await asyncio.sleep(0.1)
    stop.set()
    await running
    print(json.dumps(vars(load.report)), flush=True)


asyncio.run(main())
