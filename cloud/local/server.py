"""The local cloud as a server: its parts put together, its HTTP API on a unix socket, its start and end.

The API (JSON; errors are {"error": {"kind": NAME, "message": TEXT}} with the names of `cloud.errors`):

    GET  /v1/cloud                            id, ports, speed, zones
    POST /v1/instances                        a LaunchRequest -> an Instance
    GET  /v1/instances?pool=NAME              [Instance]; without pool all
    POST /v1/instances/{id}/terminate|stop|start
    GET  /v1/offerings                        [Offering]
    GET  /v1/notices?after=SEQ&cloud=ID&wait=SECONDS&pool=NAME
                                              {"cloud": ID, "events": [FeedEvent]}: a long poll; SEQ counts
                                              as 0 when it belongs to another cloud than this; with pool
                                              none of the machines of other pools
    POST /v1/notices/{seq}/acknowledge

and /admin (see `admin`).
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from pydantic import ValidationError as PydanticError

from cloud.errors import CloudError, Denied
from cloud.local.admin import Admin
from cloud.local.config import LocalCloudConfig, SetupError, build_market, check
from cloud.local.faults import Faults
from cloud.local.feed import Feed
from cloud.local.guard import Guard
from cloud.local.hosts import free_network
from cloud.local.machines import Machines
from cloud.local.market import SpotMarket
from cloud.local.metadata import Metadata
from cloud.local.reclaims import Reclaims
from cloud.local.sales import Sales
from cloud.local.statistics import CloudStatistics
from cloud.local.table import Identity, Machine, Table
from cloud.local.wire import (
    CONSOLE,
    DESCRIPTION,
    INSTANCE,
    INSTANCES,
    LAUNCH,
    OFFERINGS,
    PAGE,
    STARTED,
    CloudDescription,
    NoticePage,
)
from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.hosts import Hosts
from cloud.serving.sockets import listen_unix, reason_of
from policies.model import Instance, InstanceState

log = structlog.get_logger("local")

_TIDY_EVERY = 2.0
_LONGEST_WAIT = 60.0
_STATUS = {
    "InsufficientCapacity": 409,
    "QuotaExceeded": 409,
    "Misconfigured": 422,
    "Throttled": 429,
    "NotFound": 404,
    "Denied": 403,
    "Uncertain": 504,
}


class LocalCloudServer:
    """One running local cloud. Use `run_local_cloud`, which starts and ends it."""

    def __init__(self, config: LocalCloudConfig, clock: Clock) -> None:
        """Take hold of the state directory. Raises SetupError."""
        if sys.platform != "linux":
            raise SetupError("the local cloud needs Linux: 127.0.0.0/8, /proc and pidfds")
        check(config)
        self.config = config
        self.market: SpotMarket = build_market(config)
        self._clock = clock
        ports = (config.engine_port, config.metadata_port)
        self._table = Table(config.state_dir)
        try:
            self._identity = self._table.identity(
                Identity(cloud=secrets.token_hex(8), network=free_network(ports), origin=clock.now())
            )
            self._guard = Guard(self._identity.cloud)
        except BaseException:
            self._table.close()
            raise
        rng = random.Random(f"{config.seed}/reclaims")  # noqa: S311
        self.sales = Sales(config, self.market, clock, self._identity.origin)
        self.faults = Faults()
        self.feed = Feed(self._table, clock, config.keeping.notices)
        self.metadata = Metadata(
            port=config.metadata_port, clock=clock, forecast=lambda node: self.admin.forecast(node)
        )
        self.machines = Machines(
            config=config,
            identity=self._identity,
            table=self._table,
            sales=self.sales,
            clock=clock,
            guard=self._guard,
            on_up=self.metadata.up,
            on_down=self.metadata.down,
        )
        self.reclaims = Reclaims(
            config=config,
            market=self.market,
            sales=self.sales,
            machines=self.machines,
            feed=self.feed,
            clock=clock,
            rng=rng,
        )
        self.statistics = CloudStatistics(self._table, self.machines, self.sales, self._identity, clock)
        self.admin = Admin(
            table=self._table,
            machines=self.machines,
            reclaims=self.reclaims,
            feed=self.feed,
            faults=self.faults,
            statistics=self.statistics,
            sales=self.sales,
            clock=clock,
            speed=config.speed,
        )
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Recover what an earlier run left, then serve. Raises SetupError when the socket cannot be bound."""
        self.machines.recover()
        await self.metadata.open()
        path = self.config.socket_path
        try:
            self._runner = await listen_unix(
                self._application(),
                path,
                mode=0o600,
                hosts=Hosts(("local-cloud", "cloud")),
                error_answer=_error,
                cleanup=0.2,
            )
        except OSError as error:
            raise SetupError(f"socket: {path}: {reason_of(error)}; choose another path") from None
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self.reclaims.run(), name="market"),
            loop.create_task(self._tidy(), name="tidy"),
        ]
        log.info("local_cloud.started", cloud=self._identity.cloud, socket=str(path))

    async def stop(self) -> None:
        """End every running machine and release everything. Stopped machines keep their identity."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.reclaims.close()
        await self.machines.close()
        self.feed.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.metadata.close()
        self._guard.close()
        self._table.close()

    async def _tidy(self) -> None:
        while True:
            self.machines.tidy()
            await self._clock.sleep(_TIDY_EVERY)

    # -- HTTP ---------------------------------------------------------------------------------------------

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._answer_errors])
        application.router.add_get("/v1/cloud", self._get_cloud)
        application.router.add_post("/v1/instances", self._launch)
        application.router.add_get("/v1/instances", self._list)
        application.router.add_post("/v1/instances/{node}/{verb:terminate|stop|start}", self._change)
        application.router.add_get("/v1/instances/{node}/console", self._console)
        application.router.add_get("/v1/instances/{node}/started", self._started)
        application.router.add_get("/v1/offerings", self._offerings)
        application.router.add_get("/v1/notices", self._notices)
        application.router.add_post("/v1/notices/{seq:[0-9]+}/acknowledge", self._acknowledge)
        self.admin.add_routes(application.router)
        return application

    @web.middleware
    async def _answer_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except CloudError as error:
            kind = type(error).__name__
            body = {"error": {"kind": kind, "message": str(error)}}
            return web.json_response(body, status=_STATUS.get(kind, 500))
        except sqlite3.Error as error:
            # the table is written first, so nothing else has been done
            log.error("state_file.write_failed", request=request.path, error=str(error))
            text = f"the local cloud cannot write its state ({error}). Nothing was done; is its disk full?"
            return web.json_response({"error": {"kind": "CloudError", "message": text}}, status=500)
        except PydanticError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            body = {"error": {"kind": "Denied", "message": f"{where}: {first['msg']}"}}
            return web.json_response(body, status=400)

    async def _get_cloud(self, _request: web.Request) -> web.Response:
        return _json(
            DESCRIPTION.dump_json(
                CloudDescription(
                    cloud=self._identity.cloud,
                    engine_port=self.config.engine_port,
                    metadata_port=self.config.metadata_port,
                    speed=self.config.speed,
                    zones={series.zone: series.region for series in self.market.zones},
                )
            )
        )

    async def _launch(self, request: web.Request) -> web.Response:
        self.faults.check_call()
        wanted = LAUNCH.validate_json(await request.read())
        if self._table.by_token(wanted.token) is None:
            self.faults.check_launch(wanted.placement)
        machine = self.machines.launch(wanted)
        return self._done(request, "launch", INSTANCE.dump_json(self._describe(machine)))

    async def _list(self, request: web.Request) -> web.Response:
        self.faults.check_call()
        if self.faults.list_delay > 0:
            await self._clock.sleep(self.faults.list_delay)
        self.faults.check_list()
        pool, now = request.query.get("pool"), self._clock.now()
        listed = tuple(
            self._describe(machine)
            for machine in self._table.machines()
            if pool in (None, machine.pool)
            and (machine.ended_at is None or now - machine.ended_at <= self.config.keeping.ended_listed)
            and now - machine.launched_at >= self.faults.list_lag
        )
        return self._done(request, "list", INSTANCES.dump_json(listed))

    async def _change(self, request: web.Request) -> web.Response:
        self.faults.check_call()
        node, verb = request.match_info["node"], request.match_info["verb"]
        if verb == "terminate":
            self.machines.terminate(node)
        elif verb == "stop":
            self.machines.stop(node)
        else:
            machine = self._table.get(node)
            if machine is not None and machine.state is InstanceState.STOPPED:
                self.faults.check_launch(machine.placement)
            self.machines.start(node)
        return self._done(request, verb, b"{}")

    async def _console(self, request: web.Request) -> web.Response:
        self.faults.check_call()
        return _json(CONSOLE.dump_json(self.machines.console(request.match_info["node"])))

    async def _started(self, request: web.Request) -> web.Response:
        self.faults.check_call()
        return _json(STARTED.dump_json(self.machines.started(request.match_info["node"])))

    async def _offerings(self, _request: web.Request) -> web.Response:
        self.faults.check_call()
        return _json(OFFERINGS.dump_json(self.sales.offerings()))

    async def _notices(self, request: web.Request) -> web.Response:
        try:
            after = int(request.query.get("after", "0"))
            wait = min(_LONGEST_WAIT, max(0.0, float(request.query.get("wait", "0"))))
        except ValueError:
            raise Denied("after and wait must be numbers") from None
        if request.query.get("cloud", self._identity.cloud) != self._identity.cloud:
            after = 0  # counted by another cloud, whose state was wiped
        events = await self.feed.after(after, request.query.get("pool", ""), wait)
        return _json(PAGE.dump_json(NoticePage(cloud=self._identity.cloud, events=events)))

    async def _acknowledge(self, request: web.Request) -> web.Response:
        self.feed.acknowledge(int(request.match_info["seq"]))
        return _json(b"{}")

    def _describe(self, machine: Machine) -> Instance:
        return machine.describe(self.config.engine_port, self.sales.price(machine.placement))

    def _done(self, request: web.Request, call: str, body: bytes) -> web.Response:
        """The answer to a call that took effect, or nothing at all when the answer is to get lost."""
        if self.faults.loses_response(call) and request.transport is not None:
            request.transport.abort()
        return _json(body)


@asynccontextmanager
async def run_local_cloud(config: LocalCloudConfig, clock: Clock) -> AsyncIterator[LocalCloudServer]:
    """Run a local cloud inside this process for the length of an `async with`. Raises SetupError."""
    server = LocalCloudServer(config, clock)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def serve(config: LocalCloudConfig, clock: Clock) -> None:
    """Run a local cloud until SIGTERM or SIGINT: the body of a command. Raises SetupError."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        async with run_local_cloud(config, clock):
            await asked.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _error(status: int, text: str) -> web.Response:
    """The answer to a request that is broken, or not for this cloud."""
    return web.json_response({"error": {"kind": "Denied", "message": text}}, status=status)
