"""The sockets that a daemon serves: opened with a sentence for what goes wrong, closed together."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from cloud.agent_receiver import AgentReceiver
from cloud.serving.certificates import CertificateError, load
from cloud.serving.hosts import Hosts
from cloud.serving.sockets import listen_tcp, listen_unix, reason_of
from orchestrator.config.tables.agents import AgentsTable
from orchestrator.units import HostPort


class StartError(Exception):
    """The daemon cannot start. The message says what, where and what to do."""


class Listeners:
    """What one daemon listens on now."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def open_unix(self, path: Path, purpose: str, app: web.Application, mode: int) -> None:
        """Serve on a unix socket. Raises StartError."""
        try:
            self._runners.append(await listen_unix(app, path, mode=mode))
        except OSError as error:
            raise StartError(
                f"{path}: the {purpose} socket cannot be opened ({reason_of(error)}); "
                "check what is there and the directory's owner and mode, or set daemon.socket"
            ) from error

    async def open_tcp(
        self, where: HostPort, purpose: str, key: str, app: web.Application, names: Iterable[str], **more: Any
    ) -> None:
        """Serve on an address, which the configuration has under `key`. Raises StartError.

        It answers to `names`, and to those of this machine.
        """
        hosts = Hosts((where.host, *names), table="daemon", listener=str(where))
        hosts.add_own_names()
        try:
            self._runners.append(await listen_tcp(app, where.host, where.port, hosts=hosts, **more))
        except OSError as error:
            raise StartError(
                f"{where}: the {purpose} listener cannot be opened ({reason_of(error)}); "
                f'set {key} to a free port, or to "off"'
            ) from error

    async def open_agents(
        self, pool: str, settings: AgentsTable, names: Iterable[str], agents: AgentReceiver
    ) -> None:
        """Serve what takes the reports of a pool's nodes, if it listens anywhere. Raises StartError."""
        if settings.listen is None:
            return
        # A report that is refused need not be read to its end.
        more: dict[str, Any] = {"tls": tls_of(settings), "lingering": 0.0}
        key, found = f"pool.{pool}.agents.listen", (*names, urlsplit(settings.url).hostname or "")
        await self.open_tcp(settings.listen, "node reports", key, agents.application(), found, **more)

    async def close(self) -> None:
        """Close everything and remove the sockets' files, unless they are another's by now. Idempotent."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()


def tls_of(settings: AgentsTable) -> ssl.SSLContext | None:
    """The certificate of the listener for node reports; None for plain HTTP. Raises StartError."""
    if settings.tls_cert_file is None:
        return None
    assert settings.tls_key_file is not None  # noqa: S101 - the configuration has both or neither
    try:
        return load(settings.tls_cert_file, settings.tls_key_file).context
    except CertificateError as error:
        raise StartError(f"{error}; give a certificate with its private key in PEM") from None
