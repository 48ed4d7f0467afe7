"""Launches that are asked for with DryRun: EC2 checks permissions and parameters and starts nothing.

Every instance type is tried in every market, and every zone with the first type: not each with each, since
RunInstances has a burst of 5 calls and 2 a second in an account, which the daemon needs as well.

Source: the EC2 API reference (RunInstances, DryRun; request throttling).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.errors import code_of, error_text, is_refusal
from cloud.aws.machines import launch_parameters
from cloud.aws.places import PROVIDER, AwsRegion
from cloud.errors import CloudError, InsufficientCapacity, Throttled
from cloud.ports import Clock, EngineCommand, LaunchRequest
from policies.model import Market, Placement

DRY_RUN: Final = "DryRunOperation"
"""The error by which EC2 says that it would have done it."""

_PAUSE: Final = 1.0  # s after an answer that there were too many calls
_PATIENCE: Final = 8  # such answers to one launch


@dataclass(frozen=True, slots=True, kw_only=True)
class DryLaunch:
    """One launch that was tried. `code`, `error` and `word` are empty when it would have begun."""

    instance_type: str
    market: Market
    zone: str
    code: str = ""  # of EC2's error
    error: str = ""  # what EC2 said
    word: str = ""  # class of the port's error (`CloudError.word`)
    refused: bool = False  # it is not permitted


class DryLaunches:
    """The launches of one region in some markets, tried once, however often they are asked for."""

    def __init__(
        self, clients: AwsClients, place: AwsRegion, clock: Clock, *, pool: str, markets: Sequence[Market]
    ) -> None:
        self._clients, self._place, self._clock = clients, place, clock
        self._pool, self._markets = pool, markets
        self._lock = asyncio.Lock()
        self._found: tuple[DryLaunch, ...] = ()

    async def all(self) -> tuple[DryLaunch, ...]:
        """What EC2 says of each. Raises CloudError when it does not answer."""
        async with self._lock:
            if not self._found:
                self._found = tuple([found async for found in self._tried()])
            return self._found

    async def _tried(self) -> AsyncIterator[DryLaunch]:
        zones = sorted(self._place.subnets)
        for market in self._markets:
            for kind in self._place.instance_types:
                yield await self._somewhere(kind, market, zones)
            for zone in zones[1:]:
                yield await self._try(self._place.instance_types[0], market, zone)

    async def _somewhere(self, kind: str, market: Market, zones: Sequence[str]) -> DryLaunch:
        """In the first zone where the type is had: elsewhere it is `launch/types` that says so."""
        for zone in zones[:-1]:
            found = await self._try(kind, market, zone)
            if found.word != InsufficientCapacity.word:
                return found
        return await self._try(kind, market, zones[-1])

    async def _try(self, kind: str, market: Market, zone: str) -> DryLaunch:
        for _ in range(_PATIENCE):
            found = await self._once(kind, market, zone)
            if found.word != Throttled.word:
                break
            await self._clock.sleep(_PAUSE)
        return found

    async def _once(self, kind: str, market: Market, zone: str) -> DryLaunch:
        place = self._place
        placement = Placement(
            provider=PROVIDER, region=place.region, zone=zone, instance_type=kind, market=market
        )
        request = LaunchRequest(
            token=f"doctor-{market}-{zone}",
            pool=self._pool,
            placement=placement,
            command=EngineCommand(argv=()),
        )
        parameters = launch_parameters(request, place, place.subnets[zone])
        try:
            await self._clients.call(
                Lane.LIST, "ec2", "run_instances", lost=CloudError, DryRun=True, **parameters
            )
        except CloudError as error:
            code = code_of(error)
            if not code:
                raise
            if code != DRY_RUN:
                return DryLaunch(
                    instance_type=kind,
                    market=market,
                    zone=zone,
                    code=code,
                    error=error_text(error),
                    word=error.word,
                    refused=is_refusal(error),
                )
        return DryLaunch(instance_type=kind, market=market, zone=zone)
