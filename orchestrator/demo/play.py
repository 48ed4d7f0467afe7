"""One demo from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import aiohttp
import orjson

from cloud.errors import CloudError
from cloud.local.connection import LocalCloud
from cloud.ports import Clock
from orchestrator.api.client import ClientError, ControlClient, Unreachable
from orchestrator.demo import summary
from orchestrator.demo.drills import Drills
from orchestrator.demo.load import Load, LoadReport, total
from orchestrator.demo.loss import PoolLoss
from orchestrator.demo.options import DemoOptions
from orchestrator.demo.processes import Process, ProcessError, wait_for
from orchestrator.demo.scene import Scene
from orchestrator.render import render
from orchestrator.render.parts import Look
from orchestrator.views.api import EventView, PoolView, StatusView

_SAMPLE_EVERY = 0.25
_SHOW_EVERY = 5.0
_EVENTS_PAGE = 5000
_SMALL_SHARE = 0.25  # of the requests, for the second pool


class Provider(Protocol):
    """Whoever has the machines, as the demo asks it."""

    async def statistics(self) -> dict[str, Any]:
        """The machines that live ("live"), processes without one ("orphans"), and how many spot machines
        were taken: "preemptions_with_notice" and "preemptions_without_notice". Raises CloudError."""
        ...

    def at_rest(self, pool: PoolView) -> bool:
        """Whether the pool may be called to account: what was taken is replaced as far as it will be."""
        ...


class Taking(Protocol):
    """What is taken from the pool while the demo runs. `asked`: how many nodes were; `killed`: how many
    engines on machines that stayed."""

    asked: int
    killed: int

    async def step(self, progress: float, pool: PoolView) -> None:
        """Take what is due at this share of the demo's time."""
        ...


class LocalProvider:
    """The local cloud."""

    def __init__(self, cloud: LocalCloud) -> None:
        self._cloud = cloud

    async def statistics(self) -> dict[str, Any]:
        """The local cloud's own counts."""
        found: dict[str, Any] = orjson.loads(await self._cloud.read("/admin/statistics"))
        return found

    def at_rest(self, _pool: PoolView) -> bool:
        """Always: the market plays on."""
        return True


async def play(options: DemoOptions, scene: Scene, clock: Clock) -> dict[str, Any]:
    """Run one demo and return its summary. Raises ProcessError."""
    talk(options, f"Starting {options.nodes} nodes and more on a local cloud in {scene.directory} ...")
    market = str(options.trace) if options.trace is not None else "synthetic"
    async with processes(scene) as running:
        client, cloud = ControlClient(scene.socket), LocalCloud(scene.cloud_socket)
        drills = Drills(cloud, noticed=scene.drills, kills=options.kills, seed=options.seed)
        share = cloud.share()
        try:
            await pool_is_whole(client, running, scene, clock)
            loss = PoolLoss(cloud, clock, pool=scene.small) if scene.small else None
            provider = LocalProvider(cloud)
            found = await under_load(options, scene, clock, running, client, provider, drills, loss)
            return {**found, "market": market, "replay": _replay(options)}
        finally:
            await share.close()


@contextlib.asynccontextmanager
async def processes(
    scene: Scene, parts: Sequence[str] = ("provider", "local-cloud", "gateway", "daemon")
) -> AsyncIterator[tuple[Process, ...]]:
    """The processes; the cloud goes last, and takes its nodes with it."""
    config = ("--config", str(scene.config))
    ours = (sys.executable, "-m", "orchestrator")
    commands = {
        "provider": scene.provider,
        "local-cloud": (*ours, "local-cloud", *config, "--market", str(scene.market)),
        "gateway": (*ours, "gateway", *config),
        "daemon": (*ours, "run", *config),
    }
    started: list[Process] = []
    try:
        for name in (part for part in parts if commands[part]):
            process = Process(name, directory=scene.directory, program=commands[name])
            await process.start()
            started.append(process)
        yield tuple(started)
    finally:
        for process in reversed(started):
            await process.stop()


async def pool_is_whole(
    client: ControlClient, running: tuple[Process, ...], scene: Scene, clock: Clock
) -> None:
    """Wait until every wanted node is ready and serves."""

    async def ready() -> bool:
        view = await _status(client)
        pools = view["pools"] if view is not None else []
        return bool(pools) and all(pool["ready"] >= pool["wanted"] <= pool["serving"] for pool in pools)

    await wait_for(ready, running, seconds=scene.start_timeout, clock=clock, what="a whole pool")


async def under_load(
    options: DemoOptions,
    scene: Scene,
    clock: Clock,
    running: tuple[Process, ...],
    client: ControlClient,
    provider: Provider,
    taking: Taking,
    loss: PoolLoss | None = None,
    owed: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Send the load while nodes are taken, show the status, and sum up. Raises ProcessError.

    It lasts until what was lost is back: a whole pool, or what `owed` says. The signals that end a program
    end it before.
    """
    talk(options, f"All nodes serve at {scene.url}. The market plays for {options.duration:.0f} s.")
    loads = _loads(options, scene, clock)
    samples, stop = summary.Samples(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    sending = [asyncio.create_task(load.run(stop)) for load in loads]
    began = clock.now()
    with _Screen(options) as screen:
        while not stop.is_set():
            elapsed = clock.now() - began
            if elapsed >= options.duration and not owed() and (loss is None or not loss.owed):
                break
            if elapsed >= options.duration + scene.start_timeout:
                raise ProcessError("what was lost did not come back")
            for process in running:
                process.check()
            view = await _status(client)
            if view is not None:
                pools = view["pools"]
                samples.add(pools[0])
                screen.show(view, elapsed, total(load.report for load in loads), loss)
                await taking.step(elapsed / options.duration, pools[0])
                if loss is not None:
                    await loss.step(elapsed / options.duration, pools[1], loads[1].report)
            await clock.sleep(_SAMPLE_EVERY)
    stop.set()
    await asyncio.gather(*sending)
    reports = [load.report for load in loads]
    return await _account(options, scene, clock, client, provider, reports, samples, taking, loss)


def _loads(options: DemoOptions, scene: Scene, clock: Clock) -> list[Load]:
    """Requests for the first pool, and for the second where there is one."""
    shares = (
        {scene.model: 1.0 - _SMALL_SHARE, scene.small: _SMALL_SHARE} if scene.small else {scene.model: 1.0}
    )
    return [
        Load(
            url=scene.url,
            model=model,
            rate=options.rate * share,
            tokens=scene.tokens,
            streamed=scene.streamed,
            seed=options.seed + number,
            clock=clock,
            chats=scene.chats,
        )
        for number, (model, share) in enumerate(shares.items())
    ]


async def _account(
    options: DemoOptions,
    scene: Scene,
    clock: Clock,
    client: ControlClient,
    provider: Provider,
    reports: Sequence[LoadReport],
    samples: summary.Samples,
    taking: Taking,
    loss: PoolLoss | None,
) -> dict[str, Any]:
    """Ask everybody what happened, after the nodes that were leaving have left."""
    pools, statistics = await _settled(scene, clock, client, provider)
    known = _nodes(pools)
    leaked = [n for n in statistics["live"] if n not in known]
    leaked += [f"process {pid}" for pid in statistics["orphans"]]
    states = [await _gateway(scene, f"/v1/state?pool={pool['name']}") for pool in pools]
    providers = (await _gateway(scene, "/v1/routes"))["providers"]
    return summary.build(
        reports=reports,
        samples=samples,
        events=await journal(client),
        cloud=statistics,
        retried=sum(state["totals"]["retries"] for state in states),
        provider_usd=sum(provider["spent_today_usd"] for provider in providers),
        pools=pools,
        leaked=leaked,
        options={
            "seed": options.seed,
            "duration_s": options.duration,
            "speed": options.speed,
            "engine": options.engine,
        },
        drills=taking.asked,
        killed=taking.killed,
        loss=loss,
    )


async def _settled(
    scene: Scene, clock: Clock, client: ControlClient, provider: Provider
) -> tuple[list[PoolView], dict[str, Any]]:
    """The pools and the provider's statistics once both agree on which nodes live, or time is up."""
    until = clock.now() + 3 * scene.notice_s + 10.0
    while True:
        view = await _status(client)
        try:
            statistics = await provider.statistics()
        except CloudError:
            statistics = None
        if view is not None and statistics is not None:
            pools = view["pools"]
            agree = set(statistics["live"]) <= _nodes(pools) and provider.at_rest(pools[0])
            if (agree and not statistics["orphans"]) or clock.now() > until:
                return pools, statistics
        elif clock.now() > until:
            raise ProcessError("the daemon or the cloud stopped answering at the end")
        await clock.sleep(_SAMPLE_EVERY)


async def _status(client: ControlClient) -> StatusView | None:
    """The daemon's status; None while it does not answer."""
    try:
        return await asyncio.to_thread(client.status)
    except (Unreachable, ClientError):
        return None


async def journal(client: ControlClient) -> list[EventView]:
    """All events of the journal."""
    found: list[EventView] = []
    after = 0
    while True:
        page = await asyncio.to_thread(client.events, after=after, limit=_EVENTS_PAGE)
        found += page["events"]
        after = page["last"]
        if len(page["events"]) < _EVENTS_PAGE:
            return found


def _nodes(pools: Sequence[PoolView]) -> set[str]:
    return {node["id"] for pool in pools for node in pool["nodes"]}


async def _gateway(scene: Scene, path: str) -> dict[str, Any]:
    """What the gateway says of itself."""
    connector = aiohttp.UnixConnector(str(scene.gateway_socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://gateway{path}") as response,
    ):
        said: dict[str, Any] = await response.json()
        return said


class _Screen:
    """Live status: redrawn in a terminal, a line now and then elsewhere."""

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._live: Any = None
        self._shown_at = -_SHOW_EVERY

    def __enter__(self) -> _Screen:
        if not self._options.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: StatusView, elapsed: float, report: LoadReport, loss: PoolLoss | None) -> None:
        """Show one sample."""
        if self._options.quiet:
            return
        line = (
            f"{elapsed:5.0f}/{self._options.duration:.0f} s  requests {report.sent}  failed {report.failed}  "
            f"continued {report.streams_continued}  cut {report.streams_cut}  provider {report.by_provider}"
        )
        if self._live is not None:
            from rich.text import Text

            width = self._live.console.width
            small_first: StatusView = {**view, "pools": view["pools"][::-1]}  # the screen cuts off the last
            below = f"{loss.line()}\n" if loss is not None else ""
            picture = render.status(small_first, Look(width=width, colour=True))
            self._live.update(Text.from_ansi(f"{line}\n{below}{picture}"))
        elif elapsed - self._shown_at >= _SHOW_EVERY:
            self._shown_at = elapsed
            ready = ", ".join(f"{pool['name']} {pool['ready']}/{pool['wanted']}" for pool in view["pools"])
            print(f"{line}  ready {ready}", file=sys.stderr, flush=True)


def _replay(options: DemoOptions) -> str:
    """The command that plays the same market again."""
    words = ["orchestrator", "demo", "--seed", str(options.seed), "--duration", f"{options.duration:g}"]
    words += ["--nodes", str(options.nodes), "--speed", f"{options.speed:g}", "--rate", f"{options.rate:g}"]
    if options.kills:
        words += ["--kills", str(options.kills)]
    if options.engine != "simulated":
        words += ["--engine", options.engine]
    if options.trace is not None:
        words += ["--trace", str(options.trace)]
    return shlex.join(words)


def talk(options: DemoOptions, text: str) -> None:
    """One line for the screen."""
    if not options.quiet:
        print(text, file=sys.stderr, flush=True)
