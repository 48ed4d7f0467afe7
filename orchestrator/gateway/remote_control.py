"""Where daemons on other hosts give the gateway its target sets: over TCP, under TLS, with a token.

It may come up late: the gateway before this one frees its port once this one serves. What is taken there is
written into the targets file of the pool, so that the gateway restarts with it while no daemon is there.
"""

from __future__ import annotations

import functools
import ssl
from typing import Final

from cloud.balancers import targets_file as files
from cloud.balancers.targets import TargetSet
from cloud.errors import Denied
from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.hosts import ANY, Hosts
from cloud.serving.requests import Runner
from cloud.serving.sockets import listen_tcp, reason_of
from cloud.threads import WorkerThreads
from orchestrator.gateway.certificate import ShownCertificate
from orchestrator.gateway.config import GatewayConfig, GatewayError
from orchestrator.gateway.control import Control
from orchestrator.gateway.replies import bad_request
from orchestrator.units import HostPort

log = structlog.get_logger("gateway")

_EVERY: Final = 1.0  # s between two tries
_SAID_AFTER: Final = 5  # tries: a gateway that is replaced needs a moment
_SHORTEST_TOKEN: Final = 16


class RemoteControl:
    """Serves daemons on other hosts at `at`, from `run` to `close`. Raises GatewayError for a bad token."""

    def __init__(
        self,
        at: HostPort,
        config: GatewayConfig,
        control: Control,
        certificate: ShownCertificate,
        clock: Clock,
    ) -> None:
        self._at, self._control, self._certificate, self._clock = at, control, certificate, clock
        self._files = {gate.name: gate.targets_file for gate in config.pools}
        self._token = _token(config)
        self._threads = WorkerThreads("remote-control", 1)
        self._runner: Runner | None = None

    async def run(self) -> None:
        """Open it, however often that takes."""
        tries = 0
        while self._runner is None:
            app = self._control.remote_app(self._token, self._keep)
            try:
                self._runner = await listen_tcp(
                    app,
                    self._at.host,
                    self._at.port,
                    hosts=Hosts((ANY,)),  # the token tells who may ask, whatever name leads here
                    error_answer=bad_request,
                    tls=self._tls(),
                )
            except OSError as error:
                tries += 1
                if tries == _SAID_AFTER:
                    log.error("remote_control.open_failed", listen=str(self._at), error=reason_of(error))
                await self._clock.sleep(_EVERY)
        log.info("remote_control.opened", listen=str(self._at))

    async def close(self) -> None:
        """Close it. Idempotent; `run` must not be under way."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        self._threads.close()

    def _tls(self) -> ssl.SSLContext:
        """A context whose connections have the certificate of today."""

        def newest(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._certificate.context()

        context = self._certificate.context()
        context.sni_callback = newest
        return context

    async def _keep(self, taken: TargetSet) -> None:
        """Write a set down. The gateway serves by it all the same where that fails."""
        file = self._files.get(taken.pool, next(iter(self._files.values())))
        try:
            await self._threads.run(functools.partial(files.write, file, taken))
        except (OSError, Denied) as error:
            log.error("remote_control.file_failed", file=str(file), error=str(error))


def _token(config: GatewayConfig) -> str:
    file = config.control_token_file
    if file is None:
        raise GatewayError("gateway: control_listen: needs control_token_file")
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise GatewayError(f"gateway: control_token_file: {file}: {error}") from None
    if len(token) < _SHORTEST_TOKEN:
        raise GatewayError(
            f"gateway: control_token_file: {file}: a token has {_SHORTEST_TOKEN} characters or more"
        )
    return token
