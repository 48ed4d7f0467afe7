"""One gateway process: its parts put together, started, and stopped without losing a stream.

`Gateway` is for embedding, in tests and elsewhere; `run_gateway` adds the signals; `serve` is the whole
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import uuid
import warnings
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from cloud.clock import SystemClock
from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.hosts import Hosts
from cloud.serving.sockets import SocketFile, SocketInUse
from cloud.serving.sockets import serve as serve_http
from orchestrator.gateway.accounts.desk import Desk
from orchestrator.gateway.accounts.key_metrics import KeyMetrics
from orchestrator.gateway.accounts.keyfile import UNREAD, UNREAD_CODE, ClientKeys
from orchestrator.gateway.backend import Backend
from orchestrator.gateway.certificate import shown_certificate
from orchestrator.gateway.clients import Clients, connections_most
from orchestrator.gateway.config import GatewayConfig, GatewayError
from orchestrator.gateway.connection import Bounds, ClientRequest, Unread
from orchestrator.gateway.control import Control
from orchestrator.gateway.endings import Endings
from orchestrator.gateway.handover import Inheritance, start_heir
from orchestrator.gateway.ids import RequestIds
from orchestrator.gateway.lane import Lane
from orchestrator.gateway.listening import names_of, open_listener
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.monitoring import MetricsListener
from orchestrator.gateway.providers import Providers
from orchestrator.gateway.proxy import Proxy
from orchestrator.gateway.remote_control import RemoteControl
from orchestrator.gateway.replies import bad_request, error_response
from orchestrator.gateway.route_views import ROUTES_SCHEMA
from orchestrator.gateway.router import Router
from orchestrator.gateway.secured import Handshakes
from orchestrator.gateway.selfcheck import SelfCheck
from orchestrator.gateway.silence import DaemonSilence
from orchestrator.supervision import Supervisor, show_stack_on_abort
from orchestrator.units import HostPort

log = structlog.get_logger("gateway")

_BACKLOG = 4096
_ACCEPTED_AT_ONCE = 128  # and so many log lines are written each second in which none can be accepted
_TURNS = 10  # of the event loop; an accepted connection is the server's, and its request read, within six
_CLEANUP = 1.0  # s for connections that still write their last bytes
_READ_ONLY = frozenset({"GET", "HEAD"})
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Gateway:
    """A gateway that runs in the current event loop from `start` to `stop`."""

    def __init__(
        self,
        config: GatewayConfig,
        clock: Clock,
        *,
        given: Inheritance | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._given = given if given is not None else Inheritance()
        self._hosts = names_of(config, HostPort(config.host, config.port))
        self._supervisor = supervisor if supervisor is not None else Supervisor({})
        self.replaced = asyncio.Event()  # an heir serves on the same sockets
        self._rng = random.Random(config.seed)  # noqa: S311 - breaks ties and numbers requests
        self._ids = RequestIds(self._rng)
        self.incarnation = uuid.uuid4().hex
        several = tuple(gate.name for gate in config.pools) if len(config.pools) > 1 else ()
        self.metrics = GatewayMetrics(clock.now, several, routed=config.routed)
        self._endings = Endings(config.retry_after)
        self._keys = ClientKeys(config.keys_file, clock, interval=config.poll_interval)
        self.lanes: dict[str, Lane] = {}
        self.providers: dict[str, Backend] = {}  # what is put here before the start is not made
        self._desk: Desk
        self._providers: Providers
        self._router: Router
        self._proxy: Proxy
        self._control: Control
        self._control_file = SocketFile(config.socket, mode=0o600)
        self._control_runner: web.AppRunner
        self._public_runner: web.ServerRunner
        self._public_site: web.SockSite
        self._server: Clients
        self._certificate = shown_certificate(config, clock, self.metrics)
        self._public: socket.socket
        self._selfcheck: SelfCheck
        self._beating: asyncio.Task[None]
        self._checker: asyncio.Task[None]
        self._follower: asyncio.Task[None]
        self._metrics_listener: MetricsListener | None = None
        self._remote: RemoteControl | None = None
        self._remote_opener: asyncio.Task[None]
        self._opener: asyncio.Task[None]
        self.port = 0

    async def start(self) -> None:
        """Read the targets files, open the control socket, then the listener. Raises GatewayError."""
        config, given = self._config, self._given
        given.check(config)
        await self._read_keys()
        self._hosts.add_own_names()
        if self._certificate is not None:
            await self._certificate.start()
        listener = given.public if given.public is not None else open_listener(config.host, config.port)
        try:
            control = self._open_control()
        except BaseException:
            listener.close()
            raise
        self._public = listener
        self.port = listener.getsockname()[1]
        self._open_backends()
        tls = self._certificate is not None
        self._selfcheck = SelfCheck(config.host, self.port, self._clock, tls=tls)
        self._control = Control(
            incarnation=self.incarnation,
            listen=f"{config.host}:{self.port}",
            lanes=self.lanes,
            metrics=self.metrics,
            locked_out=lambda: self._selfcheck.fault,
            tls=self._tls,
            keys=self._keys,
            limits_alone=self._desk.gate.describe,
            routes=self._routes,
            now=self._clock.now,
            replace=self.replace,
        )
        for lane in self.lanes.values():
            lane.start()
        self._control_runner = await serve_http(
            self._control.app(),
            str(config.socket),
            [control],
            hosts=Hosts(("gateway",)),
            file=self._control_file if given.owned else None,
            error_answer=bad_request,
            cleanup=_CLEANUP,
        )
        await self._serve_public(listener)
        given.ready()
        self._beating = asyncio.create_task(self._beat(), name="beat")
        self._checker = asyncio.create_task(self._selfcheck.run(), name="self-check")
        self._follower = asyncio.create_task(self._keys.run(), name="keys-file")
        if (at := config.metrics_listen) is not None:
            hosts = names_of(config, at)
            hosts.add_own_names()
            self._metrics_listener = MetricsListener(at, self.metrics, hosts, self._clock)
            self._opener = asyncio.create_task(self._metrics_listener.run(), name="metrics-listener")
        if (at := config.control_listen) is not None and self._certificate is not None:
            self._remote = RemoteControl(at, config, self._control, self._certificate, self._clock)
            self._remote_opener = asyncio.create_task(self._remote.run(), name="remote-control")
        log.info(
            "gateway.started",
            host=config.host,
            port=self.port,
            socket=str(config.socket),
            targets_file=", ".join(str(gate.targets_file) for gate in config.pools),
            generation=max((lane.table.generation for lane in self.lanes.values()), default=0),
            routes=len(config.routes),
        )

    async def _read_keys(self) -> None:
        """Learn whom to let in. Raises GatewayError where a gateway that may know would make way for one
        that lets nobody in.
        """
        await self._keys.start()
        if self._keys.unread and self._given.reply is not None:
            raise GatewayError(f"gateway: keys_file: {self._keys.path} {self._keys.fault}")
        if self._keys.asked_for:
            KeyMetrics(self.metrics.registry, self._keys)

    def _open_backends(self) -> None:
        """Make what answers requests, and what sends them there."""
        config = self._config
        desk = self._desk = Desk(config, endings=self._endings, metrics=self.metrics, clock=self._clock)
        self.lanes = {
            gate.name: Lane(
                config=config,
                gate=gate,
                metrics=self.metrics,
                endings=self._endings,
                clock=self._clock,
                rng=self._rng,
                stopping=lambda: self._proxy.stopping,
                charge=desk.charge(gate),
            )
            for gate in config.pools
        }
        self._providers = Providers(
            config,
            [spec for name, spec in config.providers.items() if name not in self.providers],
            book=desk.spend,
            metrics=self.metrics,
            endings=self._endings,
            refusals=desk.refusals,
            clock=self._clock,
            rng=self._rng,
            stopping=lambda: self._proxy.stopping,
        )
        self.providers |= self._providers.backends
        self._router = Router(
            config,
            self.lanes,
            self.providers,
            endings=self._endings,
            metrics=self.metrics,
            seed=self._rng.random(),
        )
        desk.usage.start()
        self._proxy = Proxy(
            config=config,
            router=self._router,
            keys=self._keys,
            gate=desk.gate,
            endings=self._endings,
            metrics=self.metrics,
            metering=desk.metering,
            ids=self._ids,
            clock=self._clock,
        )

    async def replace(self) -> int:
        """Hand over to a new process that is started on the same sockets; returns its number.

        Raises GatewayError when it cannot serve; this one serves on then.
        """
        if self._proxy.stopping:
            raise GatewayError("this gateway is stopping already")
        control = self._control_file.listener
        sockets = [self._public] if control is None else [self._public, control]
        heir, waiting = await start_heir(sockets, owned=self._given.owned)
        self._supervisor.hands_over(heir)
        waiting.close()
        self._control_file.leave()
        log.info("gateway.replaced", heir=heir, active=self.metrics.active)
        self.replaced.set()
        return heir

    async def _beat(self) -> None:
        """Say for ever that this process works."""
        await self._given.is_the_service()
        silence = DaemonSilence(self.metrics, self._clock)
        while True:
            self._supervisor.works(self._clock.now(), self._describe)
            await self._clock.sleep(self._config.poll_interval)
            silence.look()

    def _describe(self) -> str:
        lanes = self.lanes.values()
        pools = [lane.describe() for lane in lanes]
        if len(pools) != 1:
            pools = [f"{lane.name}: {words}" for lane, words in zip(lanes, pools, strict=True)]
        return f"{self._config.host}:{self.port}: {'; '.join(pools) or 'no pool'}"

    def _routes(self) -> dict[str, Any]:
        """The body of GET /v1/routes."""
        return {
            "schema": ROUTES_SCHEMA,
            "routes": self._router.describe(),
            "providers": self._providers.describe(),
            "tls": self._tls(),
            "keys": self._keys.describe(),
        }

    def _tls(self) -> dict[str, Any] | None:
        """The certificate that clients are shown; None for plain HTTP."""
        return None if self._certificate is None else self._certificate.describe()

    async def stop(self, *, linger: float | None = None, drain_timeout: float | None = None) -> bool:
        """End without losing work: accept a little longer, then finish what runs, then break off the rest.

        Within `linger` seconds every answer tells its client to connect anew, so that clients move to
        another gateway; none is needed where an heir accepts on the same sockets. Defaults are the
        configuration's. True when nothing had to be broken off.
        """
        heir = self.replaced.is_set()
        linger = (0.0 if heir else self._config.linger) if linger is None else linger
        drain_timeout = self._config.drain_timeout if drain_timeout is None else drain_timeout
        log.info("gateway.stopping", active=self.metrics.active)
        self._proxy.stopping = True
        self._checker.cancel()
        clean = True
        if heir:
            await self._close_metrics()
            await self._close_remote()
        try:
            await self._control_runner.cleanup()
            await self._clock.sleep(linger)
            await self._stop_accepting()
            try:
                async with asyncio.timeout(drain_timeout):
                    await self._server.shaken()
                    await self._proxy.wait_idle()
                    while heir and self._server.connections:
                        # an idle connection may bring one more request, whose answer closes it
                        await self._clock.sleep(_CLEANUP)
                        await self._proxy.wait_idle()
            except TimeoutError:
                clean = False
        finally:
            if self.metrics.active:
                await self._proxy.end_now()
            self._beating.cancel()
            if self._certificate is not None:
                self._certificate.stop()
            self._follower.cancel()
            self._keys.close()
            await self._close_metrics()
            await self._close_remote()
            await self._public_runner.cleanup()
            for lane in self.lanes.values():
                await lane.close()
            await self._providers.close()
            await self._desk.close()
        log.info("gateway.stopped", clean=clean)
        return clean

    async def _close_remote(self) -> None:
        if self._remote is not None:
            self._remote_opener.cancel()
            await asyncio.gather(self._remote_opener, return_exceptions=True)
            await self._remote.close()

    async def _close_metrics(self) -> None:
        if self._metrics_listener is not None:
            self._opener.cancel()
            await asyncio.wait([self._opener])
            await self._metrics_listener.close()

    async def _stop_accepting(self) -> None:
        """Leave the listener, but none of those who were accepted a moment ago.

        The event loop makes a transport of an accepted connection a turn later, and drops the connection in
        silence when its server has been closed meanwhile.
        """
        if self._public.fileno() >= 0:  # what was closed under it accepts nothing anyway
            asyncio.get_running_loop().remove_reader(self._public)
        for _ in range(_TURNS):
            await self._clock.sleep(0.0)
        await self._public_site.stop()

    def _open_control(self) -> socket.socket:
        """The control socket, given or opened. Raises GatewayError."""
        file = self._control_file
        if self._given.control is not None:
            file.adopt(self._given.control)
            return self._given.control
        where = f"gateway: socket: {file.path}"
        try:
            return file.open()
        except SocketInUse:
            raise GatewayError(f"{where}: another gateway serves it; stop that one first") from None
        except FileExistsError as error:
            raise GatewayError(f"{where}: {error.strerror}; remove it or choose another path") from None
        except OSError as error:
            raise GatewayError(f"{where}: {error.strerror}; is its directory there?") from None

    async def _serve_public(self, listener: socket.socket) -> None:
        config = self._config
        loop = asyncio.get_running_loop()

        def make_request(
            message: RawRequestMessage,
            payload: aiohttp.StreamReader,
            protocol: web.RequestHandler,
            writer: AbstractStreamWriter,
            task: asyncio.Task[None],
        ) -> web.BaseRequest:
            return ClientRequest(message, payload, protocol, writer, task, loop, ids=self._ids)

        handshakes = None
        if (shown := self._certificate) is not None:
            ended = self.metrics.handshake_ended
            handshakes = Handshakes(shown.context, patience=config.head_timeout, on_ended=ended)
        server = self._server = Clients(
            self._dispatch,
            listener=f"{config.host}:{self.port}",
            error_answer=lambda status, text: bad_request(status, text, self._ids.new()),
            most=min(config.connection_limit, connections_most()),
            bounds=Bounds(config.head_limit, config.head_timeout, config.unread_timeout, config.body_rate),
            on_ended=self.metrics.connection_ended,
            unread=Unread(config.unread_limit, self.metrics.answer_unread),
            handshakes=handshakes,
            request_factory=make_request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
        )
        self._public_runner = web.ServerRunner(server, shutdown_timeout=_CLEANUP)
        await self._public_runner.setup()
        self._public_site = web.SockSite(self._public_runner, listener, backlog=_ACCEPTED_AT_ONCE)
        await self._public_site.start()
        listener.listen(_BACKLOG)

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        """The gateway's own paths, then the proxy; for another name, neither."""
        if request.method not in _METHODS:
            answer = bad_request(405, f"{request.method} is not served here", self._ids.of(request.headers))
            answer.headers["Allow"] = ", ".join(_METHODS)
            return answer
        refused = self._hosts.refusal(request)
        if refused is not None:
            return bad_request(*refused, self._ids.of(request.headers))
        if request.method in _READ_ONLY:
            own = request.raw_path
            if own == "/healthz":
                return web.Response(text="ok\n")
            if own == "/readyz":
                return self._readyz(self._ids.of(request.headers))
        return await self._proxy.handle(request)

    def _readyz(self, request_id: str) -> web.Response:
        """Ready while at least one route can be served; which cannot is said."""
        if self._proxy.stopping:
            return error_response(503, "stopping", "this gateway is stopping", request_id=request_id)
        if self._keys.unread:
            return error_response(503, UNREAD_CODE, UNREAD, request_id=request_id)
        missing = self._router.unservable()
        if not self._config.routed:
            message = "no target is active and healthy"
        else:
            message = f"no backend is well for: {', '.join(missing)}"
        if missing and len(missing) == max(1, len(self._router.routes)):
            return error_response(503, "no_target", message, request_id=request_id)
        return web.Response(text=f"ok, but {message}\n" if missing else "ok\n")


async def run_gateway(
    config: GatewayConfig,
    clock: Clock,
    *,
    given: Inheritance | None = None,
    supervisor: Supervisor | None = None,
) -> None:
    """Run until SIGTERM, SIGINT or an heir serves, then stop in good order; one more signal ends at once.

    A gateway that was replaced is stopping anyway and takes the first signal for that. Raises GatewayError
    when the gateway cannot start.
    """
    gateway = Gateway(config, clock, given=given, supervisor=supervisor)
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, signals.put_nowait, None)
    try:
        await gateway.start()
        signalled = asyncio.create_task(signals.get())
        replaced = asyncio.create_task(gateway.replaced.wait())
        await asyncio.wait({signalled, replaced}, return_when=asyncio.FIRST_COMPLETED)
        replaced.cancel()
        if supervisor is not None and not gateway.replaced.is_set():
            supervisor.stops("stopping: finishes what runs")
        stopping = asyncio.create_task(gateway.stop())
        again = asyncio.create_task(_after(signalled, signals))
        await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not stopping.done():
            stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


async def _after(first: asyncio.Task[None], signals: asyncio.Queue[None]) -> None:
    """Until the second signal."""
    await first
    await signals.get()


def serve(config: GatewayConfig, given: Inheritance) -> None:
    """The whole life of a gateway process. Raises GatewayError when it cannot start."""
    # aiohttp warns of bodies above 1 MiB given as bytes; here they are in memory anyway, for the retries.
    warnings.filterwarnings("ignore", message="Sending a large body directly", category=ResourceWarning)
    show_stack_on_abort()
    asyncio.run(run_gateway(config, SystemClock(), given=given, supervisor=Supervisor()))
