"""A client of the local cloud's API over its unix socket, shared by the adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import aiohttp
from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError

from cloud.errors import CloudError, Uncertain
from cloud.local.faults import ERRORS
from cloud.local.wire import DESCRIPTION, CloudDescription
from cloud.ports import Clock
from cloud.serving.sockets import reason_of

Value = TypeVar("Value")

_BASE = "http://local-cloud"
_JSON = {"Content-Type": "application/json"}


class LocalCloud:
    """One connection to a local cloud. `timeout` is in seconds for a whole call."""

    def __init__(self, socket: Path, *, timeout: float = 10.0) -> None:
        self.socket = socket
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._users = 0

    def share(self) -> Share:
        """A share of this connection for one adapter; the connection closes with the last share."""
        self._users += 1
        return Share(self)

    async def describe(self) -> CloudDescription:
        """What this cloud is. Raises CloudError."""
        return parsed(DESCRIPTION, await self.read("/v1/cloud"), "description")

    async def wait_ready(self, clock: Clock, *, timeout: float = 30.0) -> CloudDescription:
        """Wait until the cloud answers. Raises CloudError when it does not within `timeout` seconds."""
        end = clock.now() + timeout
        while True:
            try:
                return await self.describe()
            except CloudError:
                if clock.now() >= end:
                    raise
                await clock.sleep(0.05)

    async def read(self, path: str, query: Mapping[str, str] | None = None, *, wait: float = 0.0) -> bytes:
        """GET. `wait` is how much longer the cloud may take (a long poll). Raises CloudError."""
        return await self._call("GET", path, query=query, wait=wait, lost=CloudError)

    async def write(self, path: str, body: bytes = b"{}") -> bytes:
        """POST. Raises CloudError; Uncertain when no answer came, for whatever reason."""
        return await self._call("POST", path, body=body, lost=Uncertain)

    async def admin(self, order: str, body: bytes = b"{}") -> bytes:
        """POST /admin/`order`. For tests and demos. Raises CloudError."""
        return await self.write(f"/admin/{order}", body)

    async def close(self) -> None:
        """Release the connection. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def release(self) -> None:
        """One share is given up."""
        self._users -= 1
        if self._users <= 0:
            await self.close()

    async def _call(
        self,
        method: str,
        path: str,
        *,
        lost: type[CloudError],
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        wait: float = 0.0,
    ) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket), limit=64))
        timeout = aiohttp.ClientTimeout(total=self._timeout + wait)
        what = f"local cloud at {self.socket}: {method} {path}"
        try:
            async with self._session.request(
                method, _BASE + path, params=query, data=body, headers=_JSON, timeout=timeout
            ) as response:
                answer = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise lost(f"{what}: no answer ({reason_of(error)}); is it running?") from error
        if response.status != 200:
            raise _error(answer, f"{what}: status {response.status}")
        return answer


class Share:
    """One adapter's part in a connection."""

    def __init__(self, cloud: LocalCloud) -> None:
        self.cloud = cloud
        self._held = True

    async def close(self) -> None:
        """Give the share up. Idempotent."""
        if self._held:
            self._held = False
            await self.cloud.release()


def parsed(adapter: TypeAdapter[Value], answer: bytes, what: str) -> Value:
    """Read an answer of the cloud. Raises CloudError when it is not what was agreed."""
    try:
        return adapter.validate_json(answer)
    except PydanticError as error:
        raise CloudError(f"local cloud: {what}: unreadable answer: {error.errors()[0]['msg']}") from error


def _error(answer: bytes, what: str) -> CloudError:
    try:
        error = TypeAdapter(dict[str, dict[str, str]]).validate_json(answer)["error"]
        return ERRORS[error["kind"]](error["message"])
    except (PydanticError, KeyError):
        return CloudError(f"{what}: {answer[:200].decode(errors='replace')}")
