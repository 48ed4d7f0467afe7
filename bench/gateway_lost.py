"""How soon everything says that a gateway is dead or frozen, and that it is back.

A real pool on this machine with default settings: local cloud, gateway and daemon in processes of their own,
and, where they are installed, an Alertmanager and a Prometheus that scrapes every second with the rules as
shipped. The gateway is killed, then stopped with SIGSTOP, each some times, at a random instant between two
looks of the daemon. The limit for each sign is ten seconds.

    python bench/gateway_lost.py [--rounds 3] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "system"))

import alerting
import conftest
from test_gateway_lost import CHANGES, first, readiness

LIMIT = 10.0
PAGE = 'alertname="OrchestratorPoolDown"'

Signs = dict[str, Callable[[], Awaitable[bool]]]


async def measure(faults: Sequence[str], rounds: int, directory: Path) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {how: [] for how in faults}
    chance = random.Random(1)
    for how, times in found.items():
        (directory / how).mkdir()
        async with conftest.running_stack(directory / how, CHANGES, 0.3, conftest.ORDER) as stack:
            await stack.settled()
            async with monitored(stack, directory / how) as watched:
                for _ in range(rounds):
                    await asyncio.sleep(5.0 + chance.uniform(0.0, 5.0))
                    times.append(await one(stack, watched, how))
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
        "limit_s": LIMIT,
        "rounds": rounds,
        "seconds": found,
    }


@contextlib.asynccontextmanager
async def monitored(stack: Any, directory: Path) -> AsyncIterator[alerting.Monitoring | None]:
    """Prometheus and Alertmanager, or None where one is not installed."""

    def quick(text: str) -> str:
        return re.sub(r"\b(scrape_interval|evaluation_interval): \w+", r"\1: 1s", text)

    if shutil.which("prometheus") is None or shutil.which("prometheus-alertmanager") is None:
        yield None
        return
    (directory / "monitoring").mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        async with alerting.running_monitoring(stack, directory / "monitoring", quick) as watched:
            yield watched


async def one(stack: Any, watched: alerting.Monitoring | None, how: str) -> dict[str, float]:
    """Seconds from the signal to each sign of the loss, and from the return to each of its end."""
    known = len(await stack.events())

    async def journalled(kind: str, **data: str) -> bool:
        return first((await stack.events())[known:], kind, **data) is not None

    async def coded(code: int) -> bool:
        return bool((await stack.cli("status")).code == code)

    async def ready(code: str) -> bool:
        return bool(await readiness(stack) == code)

    async def paged(number: int) -> bool:
        return watched is None or len(await watched.held(PAGE)) == number

    down: Signs = {
        "event PartLost": lambda: journalled("PartLost", part="gateway"),
        "event StateChanged": lambda: journalled("StateChanged", state="down"),
        "exit code 7": lambda: coded(7),
        "/readyz 503": lambda: ready("503"),
    }
    back: Signs = {
        "back: event StateChanged": lambda: journalled("StateChanged", state="ok"),
        "back: exit code 0": lambda: coded(0),
        "back: /readyz 200": lambda: ready("200"),
    }
    if watched is not None:
        down["alert at Alertmanager"] = lambda: paged(1)
        back["back: alert gone"] = lambda: paged(0)
    gateway = stack.parts["gateway"]
    began = time.time()
    os.kill(gateway.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    found = await seconds(down, began)
    if how == "killed":
        await gateway.kill()
        await stack.start("gateway")
        while not await answers(stack):  # noqa: ASYNC110 - its start is not what is measured
            await asyncio.sleep(0.01)
    else:
        os.kill(gateway.pid, signal.SIGCONT)
    return found | await seconds(back, time.time())


async def answers(stack: Any) -> bool:
    try:
        return " 200 " in (await stack.get(stack.gateway_port, "/healthz")).partition("\r\n")[0]
    except OSError:
        return False


async def seconds(signs: Signs, since: float) -> dict[str, float]:
    """When each sign was first seen; asking takes a part of it."""

    async def until(holds: Callable[[], Awaitable[bool]]) -> float:
        while not await holds():  # noqa: ASYNC110 - processes are asked
            await asyncio.sleep(0.05)
        return time.time() - since

    times = await asyncio.gather(*map(until, signs.values()))
    return dict(zip(signs, times, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times for each of the two; at most 3")
    parser.add_argument("--quick", action="store_true", help="killed once, to see that it runs")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    faults = ("killed",) if options.quick else ("killed", "frozen")
    rounds = 1 if options.quick else min(3, options.rounds)  # after more it tells of changes less often
    with tempfile.TemporaryDirectory(prefix="orch-") as directory:
        result = asyncio.run(measure(faults, rounds, Path(directory)))
    if options.output == "json":
        print(json.dumps(result))
        return
    print(f"{result['machine']}, load {result['load_average']}; {rounds} times each; limit {LIMIT:.0f} s")
    for how, all_rounds in result["seconds"].items():
        print(f"{how:24}      mean   longest   share of the limit")
        for sign in all_rounds[0]:
            times = [each[sign] for each in all_rounds]
            longest = max(times)
            print(f"  {sign:26} {sum(times) / len(times):5.1f} s  {longest:5.1f} s   {longest / LIMIT:.2f}")


if __name__ == "__main__":
    main()
