"""Kill -9 of the daemon at every call by which it changes AWS: launches, target sets, ends of machines.

    python tests/system/aws_kills.py [--pools N] [--seed N] [--share 1.0] [POINT ...]

A scenario is played without a kill first; that tells which calls there are. Then it is played once for each
point, a call and a moment: just before the call is made, with the call on its way so that it takes effect
under the next daemon, after it took effect and before the answer, and just after the answer. The stand-in
for AWS kills the daemon's process at exactly that call. The next daemon is started and has to come to the
same end, with one machine for each intent, no machine that nobody keeps, and the on-demand floor held.

A POINT is written as it is printed, such as reclaim:RunInstances:2:after. Several pools are played at once,
each with a daemon, an access key and a target group of its own.

How many targets are written in one call depends on the moment, so a run may lack the call that names a point:
it is played again, after three such runs at the call before it, and counted as missed where even the first
call of its kind never came. Exits with 1 when a point failed, or when more than one in ten was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from aws_stage import (
    REGION,
    STRICT,
    AwsShim,
    EnginesHere,
    credentials,
    free_port,
    kept,
    network,
    running_shim,
    target_group,
)

from orchestrator.api.client import ClientError, ControlClient
from orchestrator.demo.processes import Process

PATIENCE = 90.0
"""Seconds for anything that is expected to happen; two busy cores make much slow."""

MOMENTS = ("before", "late", "after", "answered")
REPLICAS, FLOOR = 3, 1
LAUNCHES = {"reclaim": (2, 2), "lost": (3, 5)}
"""Scenarios, and how many launches each takes: cover and the way back to spot for one node or for all."""

_TRIES = 3
"""Runs for a point before it counts as missed."""

_MISSED = 0.1
"""Share of points that may be missed."""

_LAUNCHER = Path(__file__).parents[1] / "support" / "quick_balancer.py"
_TEMPLATE = "kills-node"
_POOL = """
[daemon]
state_dir = {state}
socket = {socket}
listen = "off"
log_format = "json"
tick = "250ms"
poll_instances = "400ms"
poll_targets = "400ms"
poll_offerings = "5s"
probe_interval = "250ms"
probe_timeout = "5s"
[pool.{name}]
replicas = {replicas}
model = "simulated"
[pool.{name}.engine]
kind = "simulated"
allow_simulated = true
[pool.{name}.drain]
budget = "5s"
margin = "1s"
settle = "100ms"
min_serving = "60%"
[pool.{name}.back_to_spot]
hold = "1s"
stable = "500ms"
[pool.{name}.placement]
refusal_half_life = "1s"
reclaim_half_life = "1s"
[pool.{name}.health]
unhealthy_after = "20s"
replace_after = "40s"
boot_timeout = "60s"
[pool.{name}.limits]
surge = 2
launches_per_minute = 200
spend_per_hour = "unlimited"
[pool.{name}.cloud]
kind = "aws"
[pool.{name}.cloud.aws]
endpoint = {endpoint}
instance_types = ["p5.4xlarge"]
engine_port = {port}
poll_spot_requests = "300ms"
target_group = "{name}"
[pool.{name}.cloud.aws.regions.{region}]
launch_template = "{template}"
launch_template_version = 1
[pool.{name}.cloud.aws.regions.{region}.subnets]
{subnets}
"""


@dataclass(frozen=True, order=True)
class Point:
    """One instant of one scenario."""

    scenario: str
    action: str
    number: int
    moment: str

    def __str__(self) -> str:
        return f"{self.scenario}:{self.action}:{self.number}:{self.moment}"

    @staticmethod
    def parse(text: str) -> Point:
        """The inverse of str. Raises ValueError."""
        scenario, action, number, moment = text.split(":")
        if scenario not in LAUNCHES or moment not in MOMENTS:
            raise ValueError(f"{text}: no such point")
        return Point(scenario, action, int(number), moment)


class Failed(AssertionError):
    """A run that went wrong."""


class Missed(Failed):
    """The calls of a run were others than those of the run that named the point."""


@dataclass
class Bench:
    """One pool on the stand-in, with its daemon."""

    name: str
    shim: AwsShim
    directory: Path
    port: int
    subnets: dict[str, str]
    daemon: Process = field(init=False)
    client: ControlClient = field(init=False)
    _read: int = 0  # the last entry of the journal that was looked at
    _opened: set[str] = field(default_factory=set)  # tokens of launches that the journal ever had
    _launched: set[str] = field(default_factory=set)  # and those that were launched in any run

    def __post_init__(self) -> None:
        self.directory.mkdir()
        state, socket = self.directory / "state", self.directory / "socket"
        text = _POOL.format(
            name=self.name,
            state=json.dumps(str(state)),
            socket=json.dumps(str(socket)),
            endpoint=json.dumps(self.shim.url),
            port=self.port,
            region=REGION,
            template=_TEMPLATE,
            replicas=REPLICAS,
            subnets="\n".join(f"{zone} = {json.dumps(name)}" for zone, name in self.subnets.items()),
        )
        config = self.directory / "pool.toml"
        config.write_text(text, encoding="utf-8")
        self.client = ControlClient(socket)
        self.daemon = Process(
            self.name,
            "run",
            "--config",
            str(config),
            directory=self.directory,
            environment=credentials(self.name),
            program=(sys.executable, str(_LAUNCHER)),
        )

    # -- looking -----------------------------------------------------------------------------------

    def _pool(self) -> Any:
        try:
            return self.client.status()["pools"][0]
        except ClientError:
            return None

    async def until(self, what: str, holds: Callable[[], Any]) -> Any:
        """Wait until `holds()`, asked in a thread, is true, and give what it gave."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not (found := await asyncio.to_thread(holds)):  # noqa: ASYNC110 - a process is asked
                    await asyncio.sleep(0.1)
                return found
        except TimeoutError:
            pool = await asyncio.to_thread(self._pool)
            raise Failed(
                f"{what}: not within {PATIENCE:.0f} s\n{json.dumps(pool)}\n{self.daemon.last_words(12)}"
            ) from None

    def _whole(self, without: Sequence[str]) -> bool:
        """As wanted; the daemon, EC2 and the balancer agree on which machines there are."""
        pool = self._pool()
        if pool is None:
            return False
        nodes = [node for node in pool["nodes"] if node["phase"] != "gone"]
        ready = [n for n in nodes if n["phase"] == "ready" and n["target"] == "healthy"]
        spot = [n for n in ready if n["market"] == "spot"]
        known = {n["id"] for n in nodes}
        return (
            len(nodes) == len(ready) == REPLICAS
            and len(spot) == REPLICAS - FLOOR
            and not known & set(without)
            and set(self.shim.living(self.name)) == known == self._targets()
        )

    def _targets(self) -> set[str]:
        """What the balancer holds and does not drain, by its own word."""
        elb = self.shim.client("elbv2")
        arn = elb.describe_target_groups(Names=[self.name])["TargetGroups"][0]["TargetGroupArn"]
        health = elb.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
        return {t["Target"]["Id"] for t in health if t["TargetHealth"]["State"] != "draining"}

    # -- playing -----------------------------------------------------------------------------------

    async def play(self, scenario: str, point: Point | None, delay: float = 0.0) -> dict[str, int]:
        """Play a scenario on the pool and check its end; returns how many calls of each action there were.

        Raises Failed. The pool is whole before and afterwards.
        """
        if not self.daemon.running:
            await self.daemon.start()
        await self.until("the pool is whole", lambda: self._whole(()))
        before = await asyncio.to_thread(self.shim.living, self.name)
        await asyncio.to_thread(self._intents)
        kill = None if point is None else self._kill(point, delay)
        await asyncio.to_thread(self.shim.order, "begin", key=self.name, kill=kill)
        taken = [next(n for n, m in before.items() if m == "spot")] if scenario == "reclaim" else list(before)
        try:
            for node in taken:
                notice = 120 if scenario == "reclaim" else 0
                await asyncio.to_thread(self.shim.order, "reclaim", node=node, notice_s=notice)
            if point is not None:
                await self._restart(point, taken)
            await self.until(f"{scenario}: the pool is whole again", lambda: self._whole(taken))
        finally:  # an intent of a run that was missed may close in the next one
            done = await asyncio.to_thread(self.shim.order, "done", key=self.name)
            self._launched |= launches(done["log"])
        faults = self._faults(scenario, before, done["log"])
        if faults:
            raise Failed("; ".join(faults))
        arrived: dict[str, int] = done["arrived"]
        return arrived

    def _kill(self, point: Point, delay: float) -> dict[str, Any]:
        return {
            "pid": self.daemon.pid,
            "action": point.action,
            "number": point.number,
            "moment": point.moment,
            "seconds": delay,
        }

    async def _restart(self, point: Point, taken: Sequence[str]) -> None:
        """Wait for the death that the stand-in brings, and start the next daemon."""
        await self.until(f"{point} is reached", lambda: not self.daemon.running or self._whole(taken))
        if self.daemon.running:
            raise Missed(f"{point}: this run had no such call")
        code = await self.daemon.ended()
        if code != -signal.SIGKILL:
            raise Failed(f"the daemon ended by itself with code {code}\n{self.daemon.last_words()}")
        await self.daemon.start()
        if point.moment == "late":
            await self.until("the next daemon has looked around", self._looked_around)
            await asyncio.to_thread(self.shim.order, "land", key=self.name)

    def _looked_around(self) -> bool:
        """The daemon has listed the machines: what was on its way when it started is known."""
        pool = self._pool()
        return pool is not None and bool(pool["nodes"])

    def _faults(self, scenario: str, before: dict[str, str], log: Sequence[dict[str, Any]]) -> list[str]:
        """What is wrong with a run that ended well by its looks."""
        found = []
        tokens = launches(log)
        done = self._intents()
        if stray := tokens - self._opened:
            found.append(f"launched {sorted(stray)}, and the journal has no intent of that")
        if missing := done - self._launched:
            found.append(f"the journal has {sorted(missing)} as done, which were never launched")
        least, most = LAUNCHES[scenario]
        if not least <= len(tokens) <= most:
            found.append(f"{len(tokens)} launches, {least} to {most} are needed")
        if scenario == "reclaim":
            markets = {m["id"]: m["market"] for m in self.shim.machines(self.name)}
            low = lowest(set(before), before | markets, log)
            if low < FLOOR:
                found.append(f"only {low} on-demand nodes were targets at one time, {FLOOR} are the floor")
        return found

    def _intents(self) -> set[str]:
        """Read the journal on; the tokens of launches that are done since the last look.

        An intent may be kept for later: a launch that waited for its turn when its daemon died is asked for
        again once there is room.
        """
        page = self.client.events(after=self._read, limit=5000)
        self._read = page["last"]
        told = [(e["kind"], e["data"]) for e in page["events"]]
        self._opened |= {
            data["token"] for kind, data in told if kind == "IntentOpened" and data["kind"] == "launch"
        }
        done = {data["token"] for kind, data in told if kind == "IntentClosed" and data["outcome"] == "done"}
        return done & self._opened

    async def end(self) -> None:
        """End the daemon."""
        await self.daemon.kill()


def launches(log: Sequence[Mapping[str, Any]]) -> set[str]:
    """The tokens of all launches that took effect."""
    return {token for change in log if change["action"] == "RunInstances" for token in change["subjects"]}


def lowest(targets: set[str], markets: dict[str, str], log: Sequence[dict[str, Any]]) -> int:
    """The fewest on-demand targets that there were after any change, beginning with `targets`."""
    held, fewest = set(targets), REPLICAS
    for change in log:
        if change["action"] == "RegisterTargets":
            held |= set(change["subjects"])
        elif change["action"] in ("DeregisterTargets", "TerminateInstances"):
            held -= set(change["subjects"])
        fewest = min(fewest, sum(markets.get(node) == "on-demand" for node in held))
    return fewest


# -- all points -------------------------------------------------------------------------------------


@dataclass
class Result:
    """What became of all points."""

    points: list[Point]
    failures: dict[Point, str] = field(default_factory=dict)
    missed: dict[Point, str] = field(default_factory=dict)
    calls: dict[str, dict[str, int]] = field(default_factory=dict)

    def faults(self) -> dict[Point, str]:
        """What makes it a failure, by point."""
        tolerated = len(self.missed) <= _MISSED * len(self.points)
        return self.failures if tolerated else {**self.failures, **self.missed}


def in_all(runs: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Calls that every run of a scenario made: on a busy machine one may make some more."""
    return {action: min(run[action] for run in runs) for action in runs[0] if all(action in r for r in runs)}


async def campaign(
    shim: AwsShim,
    directory: Path,
    *,
    pools: int,
    seed: int,
    share: float = 1.0,
    chosen: Sequence[Point] = (),
    told: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Find the points and play them, or the chosen ones, or a share of each scenario's."""
    quick = {"boot": 0.05, "end": 0.05, "remember": 20.0, "target_initial": 0.0}
    shim.order("set", idle_ends_draining=True, **quick, **STRICT)
    subnets, port = network(shim, "127.82", _TEMPLATE), free_port()
    benches = [Bench(f"kills-{n}", shim, directory / f"{n}", port, subnets) for n in range(pools)]
    rng = random.Random(seed)
    async with kept(EnginesHere(shim, port)):
        for bench in benches:
            target_group(shim, bench.name)
        try:
            result = Result(points=list(chosen))
            for number, scenario in enumerate(LAUNCHES):
                plain = [await benches[number % pools].play(scenario, None) for _ in range(2)]
                result.calls[scenario] = in_all(plain)
                told(f"{scenario}: {result.calls[scenario]}")
            if not chosen:
                result.points = _drawn(points(result.calls), share, rng)
            waiting = list(reversed(result.points))
            delays = {point: rng.uniform(0.0, 0.05) for point in result.points}

            async def work(bench: Bench) -> None:
                while waiting:
                    point = waiting.pop()
                    for tries in range(_TRIES):
                        try:
                            await bench.play(point.scenario, point, delays[point])
                        except Missed as missed:
                            if tries == _TRIES - 1 and point.number == 1:
                                result.missed[point] = str(missed)
                            elif tries == _TRIES - 1:  # a busy machine did with fewer calls
                                earlier = replace(point, number=point.number - 1)
                                delays[earlier] = delays[point]
                                waiting.append(earlier)
                            continue
                        except Failed as failure:
                            result.failures[point] = str(failure)
                        break
                    told(f"{point}{': ' + result.failures[point] if point in result.failures else ''}")

            await asyncio.gather(*(work(bench) for bench in benches))
        finally:
            for bench in benches:
                await bench.end()
    return result


def points(calls: dict[str, dict[str, int]]) -> list[Point]:
    """Every instant at which a daemon can die, by the calls of runs without a kill."""
    return [
        Point(scenario, action, number, moment)
        for scenario, counted in calls.items()
        for action, count in sorted(counted.items())
        for number in range(1, count + 1)
        for moment in MOMENTS
    ]


def _drawn(found: list[Point], share: float, rng: random.Random) -> list[Point]:
    """All of them in an order of chance, or a share: at least one of each action and moment."""
    rng.shuffle(found)
    if share >= 1.0:
        return found
    kinds = {(p.action, p.moment): p for p in found}
    chosen = list(kinds.values())
    rest = [p for p in found if p not in set(chosen)]
    return chosen + rest[: max(0, round(share * len(found)) - len(chosen))]


def main() -> int:
    """Play them and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", nargs="*", type=Point.parse, metavar="POINT")
    parser.add_argument("--pools", type=int, default=3, help="pools that are played at once")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--share", type=float, default=1.0, help="of the points, drawn by the seed")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as directory, running_shim() as shim:
        result = asyncio.run(
            campaign(
                shim,
                Path(directory),
                pools=given.pools,
                seed=given.seed,
                share=given.share,
                chosen=given.points,
                told=lambda text: print(text, flush=True),
            )
        )
    print(f"{len(result.points)} points, {len(result.failures)} failed, {len(result.missed)} missed")
    for point in (*result.failures, *result.missed):
        print(f"  python tests/system/aws_kills.py --seed {given.seed} {point}")
    return 1 if result.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
