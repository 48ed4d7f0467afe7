"""Has the gateway replaced by a new process of it, which reads the configuration that was taken up.

No request is lost over that: the gateway hands its sockets to its heir (`orchestrator.gateway.handover`). A
pool that is being removed is served by the old one until its nodes are gone, so the heir waits for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from cloud.logger import structlog

log = structlog.get_logger("daemon")

_WITHIN: Final = aiohttp.ClientTimeout(total=90.0)  # a new process has a minute to serve

Replace = Callable[[Path], Awaitable[str]]
"""Replaces the gateway at a control socket; says in a sentence why it could not, empty when all is well."""


async def replace_gateway(control: Path) -> str:
    """See `Replace`. Where no gateway runs there is none to be replaced: the next one reads the file."""
    connector = aiohttp.UnixConnector(str(control))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_WITHIN) as session,
            session.post("http://localhost/v1/replace", json={}) as answer,
        ):
            body: Any = orjson.loads(await answer.read())
            if answer.status == 200:
                log.info("gateway.replaced", pid=body.get("pid"))
                return ""
            said = body.get("error")
            return str(said.get("message", said) if isinstance(said, dict) else said)
    except (aiohttp.ClientConnectorError, FileNotFoundError):
        return ""
    except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError, AttributeError) as error:
        return f"{control}: the gateway was not replaced: {error or 'no answer in time'}"


class Heirs:
    """Replaces the gateway once what it reads has changed. `held_up` says that the old one is needed still,
    `failed` takes why the heir cannot serve."""

    def __init__(
        self, replace: Replace, *, held_up: Callable[[], bool], failed: Callable[[str], None]
    ) -> None:
        self._replace, self._held_up, self._failed = replace, held_up, failed
        self._wanted: Path | None = None
        self._under_way: asyncio.Task[None] | None = None

    def want(self, control: Path, changed: Sequence[str]) -> None:
        """The gateway at this socket reads these keys, and they changed."""
        if changed:
            log.info("gateway.replace_requested", changed=list(changed), waits=self._held_up())
            self._wanted = control
            self.look()

    def look(self) -> None:
        """Replace it now if that is wanted and nothing holds it up."""
        idle = self._under_way is None or self._under_way.done()
        if self._wanted is not None and idle and not self._held_up():
            self._under_way = asyncio.create_task(self._run(), name="replace the gateway")

    async def _run(self) -> None:
        while (control := self._wanted) is not None and not self._held_up():
            self._wanted = None
            if why := await self._replace(control):
                log.error("gateway.replace_failed", reason=why)
                self._failed(why)

    async def stop(self) -> None:
        """Wait for nothing more; a gateway that is being replaced goes on by itself."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)
