"""Real SkyPilot on the stand-in for AWS, one full run: launch, list, stop, start, end, reclaim, and kills.

    make skypilot-run                   20 kills, 100 nodes
    python tests/system/skypilot_run.py --kills 5 --nodes 10 --seed 7

A process that holds the adapters, as the daemon does, is asked for nodes; it or its helper is killed with -9
at random instants, and what follows it asks for the same tokens again, as the daemon's journal has it do.
Every third machine of a kill is taken back before that. Last, a whole daemon (`orchestrator run`) brings up a
pool and is killed with -9 in the middle of it. It prints what was seen and measured, and fails when a token
has another number of machines than one, when a machine or a helper is left, when SkyPilot made a role or
opened a port, when the helper or the daemon needs more memory than it may, or the daemon imports SkyPilot.

Exit code: 0 all held, 1 something did not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from aws_stage import ZONES, AwsShim, EnginesHere, credentials, free_port, kept, running_shim  # noqa: E402
from sky_daemon import SkyDaemon  # noqa: E402
from sky_stage import FORBIDDEN, POOL, REGION, Sky, account, furnish, real_settings, region, request  # noqa: E402

from cloud.clock import SystemClock  # noqa: E402
from cloud.errors import CloudError  # noqa: E402
from policies.model import InstanceState, Market  # noqa: E402

MOST_MEMORY = 600e6  # bytes of the helper with all nodes
MOST_OF_DAEMON = 150e6  # bytes of the daemon
POOL_OF_DAEMON = 20  # nodes at most, since an engine runs for each


@contextlib.asynccontextmanager
async def adapters(home: Path, url: str, group: str) -> AsyncIterator[Sky]:
    """What the daemon holds."""
    places = [region(network=group, zones=ZONES, image="ami-12345678")]
    shim = AwsShim(url)
    made = Sky(
        real_settings(home, shim, places, credentials()), places, SystemClock(), home.parent / "launches"
    )
    try:
        yield made
    finally:
        await made.close()


# -- the process that is killed ----------------------------------------------------------------------


async def hold(home: Path, url: str, group: str) -> None:
    """Take lines {"token", "market", "zone"} until the end, and say what became of each launch."""
    async with adapters(home, url, group) as sky:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        tasks = set()

        async def launch(asked: dict[str, str]) -> None:
            wanted = request(asked["token"], Market(asked["market"]), asked["zone"])
            try:
                said = str((await sky.instances.launch(wanted)).state)
            except CloudError as error:
                said = f"{error.word}: {error}"
            while True:  # one that ended is there again before this is said
                with contextlib.suppress(CloudError):
                    await sky.helper.ask("info")
                    break
                await asyncio.sleep(0.5)
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            answer = {"token": wanted.token, "said": said, "helper": sky.helper.pid, "rss": rss}
            print(json.dumps(answer), flush=True)

        print(json.dumps({"helper": (await sky.helper.ask("info"), sky.helper.pid)[1]}), flush=True)
        while line := await reader.readline():
            task = asyncio.ensure_future(launch(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


class Holder:
    """That process, from outside."""

    def __init__(self, home: Path, url: str, group: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--hold", str(home), url, group],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.helper = int(self.read()["helper"])

    def ask(self, token: str, market: Market, zone: str) -> None:
        """Have it launch a node."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"token": token, "market": str(market), "zone": zone}) + "\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Its next answer."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # and no line of the log
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("the process that holds the adapters has ended")

    def kill(self, whom: str) -> None:
        """With -9: the helper alone, or the process with all it has."""
        if whom == "helper":
            os.kill(self.helper, signal.SIGKILL)
        else:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """The same, when it is not needed any more."""
        self._process.kill()
        self._process.wait()


# -- the run -----------------------------------------------------------------------------------------


class Run:
    """What was seen, and what of it should not be."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def say(self, what: str, value: object) -> None:
        print(f"{what:<46} {value}", flush=True)

    def need(self, true: bool, what: str) -> None:
        if not true:
            self.failures.append(what)
            print(f"FAILED: {what}", flush=True)


def of_token(shim: AwsShim, token: str) -> list[dict[str, Any]]:
    return [m for m in shim.order("machines")["machines"] if m["token"] == token]


def kills(run: Run, shim: AwsShim, home: Path, group: str, count: int, seed: int) -> None:
    """Kills at random instants of a launch, and the same tokens asked again."""
    chance, seen, holder = random.Random(seed), Counter[str](), Holder(home, shim.url, group)
    most, memory = 0.0, 0
    for number in range(count):
        token, whom = f"kill/{seed}/{number}", chance.choice(("helper", "daemon"))
        market, zone = chance.choice(tuple(Market)), chance.choice(ZONES)
        began = time.monotonic()
        holder.ask(token, market, zone)
        if number % 2:  # just as the machine appears: nobody here has heard of it yet
            while not of_token(shim, token) and time.monotonic() - began < 60.0:
                time.sleep(0.01)
            time.sleep(chance.choice((0.0, 0.0, 0.05, 0.2)))
        else:
            time.sleep(chance.uniform(0.0, max(most, 1.0)))
        holder.kill(whom)
        most = max(most, min(10.0, time.monotonic() - began))
        machines = of_token(shim, token)
        taken = bool(machines) and number % 3 == 0
        if taken:
            shim.client("ec2").terminate_instances(InstanceIds=[machines[0]["id"]])
        there = "machine there" if machines else "no machine yet"
        seen[f"{whom}, {there}{', taken back' if taken else ''}"] += 1
        if whom == "daemon":
            holder = Holder(home, shim.url, group)
        else:
            holder.read()  # Uncertain
        for _ in range(6):
            holder.ask(token, market, zone)
            answer = holder.read()
            holder.helper = answer["helper"] or holder.helper
            if not answer["said"].startswith(("uncertain", "error")):
                break
            time.sleep(2.0)
        found, memory = of_token(shim, token), answer["rss"]
        run.need(
            len(found) == 1, f"{token}: {len(found)} machines after a kill of the {whom}: {answer['said']}"
        )
        run.need(not taken or answer["said"] == "terminated", f"{token}: taken back, and is {answer['said']}")
    for how, times in sorted(seen.items()):
        run.say(f"  kills of the {how}", times)
    run.say("process with the adapters, most memory", f"{memory / 1e6:.0f} MB")
    holder.end()


async def whole(run: Run, shim: AwsShim, home: Path, group: str, nodes: int) -> None:
    """Every operation once, then many nodes."""
    async with adapters(home, shim.url, group) as sky:
        port, clock = sky.instances, time.monotonic

        async def until(node: str, state: InstanceState) -> Any:
            while True:
                for instance in await port.list(POOL, REGION):
                    if instance.id == node and instance.state is state:
                        return instance
                await asyncio.sleep(0.1)

        began = clock()
        await sky.helper.ask("info")
        run.say("start of the helper", f"{clock() - began:.1f} s")
        sold = [await sky.offerings.list(part) for part in sky.offerings.parts()]
        prices = {str(o.placement): o.price for part in sold for o in part.offerings}
        run.need(len(prices) == 4 and all(prices.values()), f"prices: {prices}")
        began = clock()
        node = await port.launch(request("whole/1", Market.ON_DEMAND, ZONES[0]))
        run.say("first launch", f"{clock() - began:.1f} s")
        running = await until(node.id, InstanceState.RUNNING)
        run.need(bool(running.address), "a running machine has an address")
        await port.stop(node.id)
        await until(node.id, InstanceState.STOPPED)
        await port.start(node.id)
        await until(node.id, InstanceState.RUNNING)
        await port.terminate(node.id)
        await until(node.id, InstanceState.TERMINATED)
        again = await port.launch(request("whole/1", Market.ON_DEMAND, ZONES[0]))
        run.need(again.state is InstanceState.TERMINATED, "a token whose machine ended launches nothing")
        spot = await port.launch(request("whole/2", Market.SPOT, ZONES[1]))
        await until(spot.id, InstanceState.RUNNING)
        shim.order("reclaim", node=spot.id, notice_s=0.0)
        ended = await until(spot.id, InstanceState.TERMINATED)
        run.need(ended.ending == "reclaim", f"a reclaim is told as {ended.ending!r}")
        run.say("launch, stop, start, end, replay, reclaim", "done")
        await many(run, shim, sky, nodes)


async def many(run: Run, shim: AwsShim, sky: Sky, nodes: int) -> None:
    """A pool of many nodes: memory, calls, time."""
    calls = lambda: Counter(shim.order("calls"))  # noqa: E731
    for instance in await sky.instances.list(POOL, REGION):  # of the kills
        await sky.instances.terminate(instance.id)
    before, began = calls(), time.monotonic()
    gate = asyncio.Semaphore(8)

    async def one(number: int) -> float:
        async with gate:
            start = time.monotonic()
            await sky.instances.launch(request(f"many/{number}", Market.SPOT, ZONES[number % 2]))
            return time.monotonic() - start

    took = sorted(await asyncio.gather(*(one(number) for number in range(nodes))))
    spent = calls() - before
    run.say(
        f"{nodes} launches, 8 at once", f"{time.monotonic() - began:.1f} s, p50 {took[len(took) // 2]:.2f} s"
    )
    run.say("calls a launch", {name: round(count / nodes, 2) for name, count in sorted(spent.items())})
    for title in ("first list (with addresses)", "second list", "third list"):
        before, began = calls(), time.monotonic()
        listed = await sky.instances.list(POOL, REGION)
        living = [i for i in listed if i.state is InstanceState.RUNNING]
        spent = calls() - before
        per = {name: round(count / len(living), 2) for name, count in sorted(spent.items())}
        run.say(f"{title} of {len(living)}", f"{time.monotonic() - began:.1f} s, calls a node {per}")
    run.need(len(living) == nodes, f"{len(living)} of {nodes} nodes are listed as running")
    memory = (await sky.helper.ask("info"))["rss"]
    run.say(f"helper's memory with {nodes} nodes", f"{memory / 1e6:.0f} MB, {sky.helper.state.ends} ends")
    run.need(memory <= MOST_MEMORY, f"the helper holds {memory / 1e6:.0f} MB")
    ends = [i.id for i in await sky.instances.list(POOL, REGION) if i.state is not InstanceState.TERMINATED]

    async def end(node: str) -> None:
        async with gate:
            await sky.instances.terminate(node)

    began = time.monotonic()
    await asyncio.gather(*(end(node) for node in ends))
    run.say(f"{len(ends)} ends, 8 at once", f"{time.monotonic() - began:.1f} s")
    left = [m["id"] for m in shim.order("machines")["machines"] if m["state"] in ("pending", "running")]
    for _ in range(50):
        left = [m["id"] for m in shim.order("machines")["machines"] if m["state"] in ("pending", "running")]
        if not left:
            break
        await asyncio.sleep(0.2)
    run.need(not left, f"machines are left: {left}")
    run.say("machines left at the end", len(left))


async def whole_daemon(run: Run, shim: AwsShim, directory: Path, group: str, nodes: int) -> None:
    """`orchestrator run` with a pool through SkyPilot, killed half-way."""
    home, port = directory / "daemon-home", free_port()
    furnish(home, shim, ZONES)
    daemon = SkyDaemon(directory, shim.url, home, group, port, nodes)
    of_pool = lambda: [m for m in shim.machines(POOL) if m["state"] in ("pending", "running")]  # noqa: E731
    run.need(not of_pool(), "machines are there before the daemon begins")
    try:
        async with kept(EnginesHere(shim, port)):
            began = time.monotonic()
            daemon.start()
            await asyncio.to_thread(wait_for, lambda: len(of_pool()) >= max(1, nodes // 2))
            daemon.process.kill()
            daemon.process.wait()
            run.say("daemon killed with -9 at machines", len(of_pool()))
            daemon.start()
            await asyncio.to_thread(daemon.until_ready)
            run.say(
                f"whole daemon: {nodes} nodes ready after", f"{time.monotonic() - began:.1f} s, kill included"
            )
            run.need(len(of_pool()) == nodes, f"the daemon has {len(of_pool())} machines for {nodes} nodes")
            memory = daemon.most_memory()
            packages = await asyncio.to_thread(daemon.stop)
    finally:
        daemon.close()
    run.say("daemon, most memory", f"{memory / 1e6:.0f} MB")
    run.need(memory < MOST_OF_DAEMON, f"the daemon held {memory / 1e6:.0f} MB")
    heavy = sorted(packages & {"sky", "pandas", "numpy", "boto3"})
    run.say("packages imported by the daemon, of SkyPilot", f"{len(packages)}, {heavy or 'none'}")
    run.need(not heavy, f"the daemon imported {heavy}")
    left = helpers_of(home)
    run.need(not left, f"helpers outlived the daemon: {left}")
    shim.client("ec2").terminate_instances(InstanceIds=[m["id"] for m in of_pool()])


def wait_for(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + 300
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it did not become true within 5 minutes")
        time.sleep(0.05)


def helpers_of(home: Path) -> list[int]:
    """Processes that have this home in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(home).encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def machine() -> str:
    """This machine, in words."""
    models = {
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    }
    name = min(models, default="model name: unknown").partition(":")[2].strip()
    return f"{os.cpu_count()} cores, {name}, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"


def main() -> int:
    """The whole run; the exit code."""
    if sys.argv[1:2] == ["--hold"]:
        asyncio.run(hold(Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    os.environ.update(credentials())
    run = Run()
    with running_shim() as shim, tempfile.TemporaryDirectory(prefix="skypilot-run-") as directory:
        home = Path(directory) / "home"
        group = account(shim)
        furnish(home, shim, ZONES)
        before = Counter(shim.order("calls"))
        run.say("machine", machine())
        kills(run, shim, home, group, options.kills, options.seed)
        asyncio.run(whole(run, shim, home, group, options.nodes))
        asyncio.run(whole_daemon(run, shim, Path(directory), group, min(options.nodes, POOL_OF_DAEMON)))
        tokens = Counter(m["token"] for m in shim.order("machines")["machines"])
        run.need(set(tokens.values()) == {1}, f"tokens with several machines: {tokens}")
        run.say("tokens, machines", f"{len(tokens)}, {sum(tokens.values())}")
        seen = Counter(shim.order("calls")) - before
        made = {name: seen[name] for name in FORBIDDEN if seen[name]}
        run.need(not made, f"SkyPilot made a role or opened a port: {made}")
        run.say("roles made, ports opened", made or "none")
    print("FAILED" if run.failures else "all held", flush=True)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
