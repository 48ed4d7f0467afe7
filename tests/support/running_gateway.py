"""A gateway inside the test's own process, and its control socket."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from cloud.balancers.targets import TargetSet, encode
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.lane import Lane
from policies.model import TargetSpec
from tests.support.upstreams import Upstream

JSON = {"Content-Type": "application/json"}


@dataclass
class Running:
    """A started gateway and what a test needs to talk to it."""

    gateway: Gateway
    config: GatewayConfig
    generation: int = 0
    stopped: bool = field(default=False)

    @property
    def url(self) -> str:
        scheme = "http" if self.config.tls_cert_file is None else "https"
        return f"{scheme}://127.0.0.1:{self.gateway.port}"

    @property
    def lane(self) -> Lane:
        """That of the only pool."""
        (lane,) = self.gateway.lanes.values()
        return lane

    def document(self, targets: Iterable[TargetSpec], generation: int | None = None) -> bytes:
        if generation is None:
            self.generation += 1
            generation = self.generation
        return encode(TargetSet(generation=generation, pool="test", written_at=1.0, targets=tuple(targets)))

    async def control(self, method: str, path: str, data: bytes | None = None) -> tuple[int, dict[str, Any]]:
        connector = aiohttp.UnixConnector(str(self.config.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://gateway{path}", data=data, headers=JSON) as answer,
        ):
            return answer.status, await answer.json()

    async def push(self, *upstreams: Upstream | TargetSpec) -> None:
        targets = [up.spec() if isinstance(up, Upstream) else up for up in upstreams]
        status, body = await self.control("PUT", "/v1/targets", self.document(targets))
        assert status == 200, body

    async def state(self) -> dict[str, Any]:
        status, body = await self.control("GET", "/v1/state")
        assert status == 200
        return body

    async def targets(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in (await self.state())["targets"]}

    async def all_checked(self) -> bool:
        return all(row["state"] != "initial" for row in (await self.targets()).values())

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.gateway.stop(linger=0.0, drain_timeout=0.0)
