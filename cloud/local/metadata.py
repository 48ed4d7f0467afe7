"""The metadata service of every node, on the node's own address: EC2's IMDSv2 as far as notices need it.

One application serves all nodes; the address that a request came in on says which node asks. Paths, status
codes and documents are those of EC2 (a token is required, 404 is the normal answer before a notice), except
that times carry milliseconds when they are not whole seconds: in accelerated time a second is long.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from aiohttp import web

from cloud.local.table import Machine
from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.hosts import Hosts, guard
from cloud.serving.requests import Runner, plain_error
from policies.model import Market

log = structlog.get_logger("local")

_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 (the name of a header)
_LONGEST_TTL = 21600


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a node's metadata says of its future. Times are seconds since the epoch, None for nothing."""

    deadline: float | None = None
    recommended_at: float | None = None


class Metadata:
    """Serves the metadata of all machines that are up. `forecast` says what a node shows now."""

    def __init__(self, *, port: int, clock: Clock, forecast: Callable[[str], Shown]) -> None:
        self._port = port
        self._clock = clock
        self._forecast = forecast
        self._machines: dict[str, Machine] = {}  # by address
        self._sites: dict[str, web.TCPSite] = {}
        self._tokens: dict[str, tuple[str, float]] = {}  # token -> (node, when it ends)
        self._work: set[asyncio.Task[None]] = set()
        # The one request that changes something needs a header that no foreign page can set.
        application = web.Application(middlewares=[guard(Hosts(), plain_error, changes=False)])
        application.router.add_put("/latest/api/token", self._put_token)
        application.router.add_get("/latest/{path:.*}", self._get)
        self._runner = Runner(application, listener=f"metadata:{port}", shutdown_timeout=0.2)

    async def open(self) -> None:
        """Get ready to serve; addresses are bound as machines come up."""
        await self._runner.setup()

    async def close(self) -> None:
        """Stop serving."""
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._runner.cleanup()

    def up(self, machine: Machine) -> None:
        """Serve a machine that came up."""
        self._machines[machine.host] = machine
        site = web.TCPSite(self._runner, machine.host, self._port, reuse_address=True)
        self._sites[machine.host] = site
        self._do(self._start(machine, site))

    def down(self, machine: Machine) -> None:
        """Serve a machine no longer."""
        serving = self._machines.get(machine.host)
        if serving is not None and serving.id == machine.id:
            del self._machines[machine.host]
            self._tokens = {token: held for token, held in self._tokens.items() if held[0] != machine.id}
            self._do(self._sites.pop(machine.host).stop())

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _start(self, machine: Machine, site: web.TCPSite) -> None:
        try:
            await site.start()
        except OSError as error:
            log.warning(
                "metadata.listen_failed",
                node=machine.id,
                host=machine.host,
                port=self._port,
                error=str(error),
            )

    def _node(self, request: web.Request) -> Machine:
        """The machine that a request came in on. A machine that is down does not answer at all."""
        host = request.transport.get_extra_info("sockname")[0] if request.transport else ""
        machine = self._machines.get(host)
        if machine is None:
            if request.transport is not None:
                request.transport.abort()
            raise web.HTTPNotFound
        return machine

    async def _put_token(self, request: web.Request) -> web.Response:
        machine = self._node(request)
        if "X-Forwarded-For" in request.headers:
            raise web.HTTPForbidden
        lifetime = request.headers.get(_TTL, "")
        if not lifetime.isdecimal() or not 1 <= int(lifetime) <= _LONGEST_TTL:
            raise web.HTTPBadRequest
        token = secrets.token_urlsafe(32)
        self._tokens[token] = (machine.id, self._clock.now() + int(lifetime))
        return web.Response(text=token, headers={_TTL: lifetime})

    async def _get(self, request: web.Request) -> web.Response:
        machine = self._node(request)
        token = request.headers.get(_TOKEN, "")
        node, ends = self._tokens.get(token, ("", 0.0))
        if node != machine.id or ends <= self._clock.now():
            self._tokens.pop(token, None)
            raise web.HTTPUnauthorized
        text = self._documents(machine).get(request.match_info["path"].strip("/"))
        if text is None:
            raise web.HTTPNotFound
        return web.Response(text=text, headers={_TTL: str(int(ends - self._clock.now()))})

    def _documents(self, machine: Machine) -> dict[str, str]:
        """Every document of a machine, by its path below /latest/."""
        placement = machine.placement
        shown = self._forecast(machine.id)
        documents = {
            "meta-data/instance-id": machine.id,
            "meta-data/instance-type": placement.instance_type,
            "meta-data/instance-life-cycle": "spot" if placement.market is Market.SPOT else "on-demand",
            "meta-data/local-ipv4": machine.host,
            "meta-data/placement/availability-zone": placement.zone,
            "meta-data/placement/region": placement.region,
            "meta-data/events/maintenance/scheduled": "[]",
        }
        if shown.deadline is not None:
            time = utc(shown.deadline)
            action = orjson.dumps({"action": "terminate", "time": time}).decode()
            documents["meta-data/spot/instance-action"] = action
            documents["meta-data/spot/termination-time"] = time
        if shown.recommended_at is not None:
            recommended = orjson.dumps({"noticeTime": utc(shown.recommended_at)}).decode()
            documents["meta-data/events/recommendations/rebalance"] = recommended
        return documents


def utc(at: float) -> str:
    """An instant as EC2 writes it, 2026-01-01T00:00:00Z; with milliseconds when it has any."""
    milliseconds = round(at * 1000)
    whole = datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{milliseconds % 1000:03d}Z" if milliseconds % 1000 else f"{whole}Z"
