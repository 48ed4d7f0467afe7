"""The `Offerings` port on Azure: prices from the public list, and what the subscription may use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from cloud.azure.clients import SKUS_VERSION, AzureAccount, AzureClients, Lane
from cloud.azure.places import PROVIDER, AzureRegion
from cloud.azure.prices import PRICES, VERSION, read_prices, wanted
from cloud.azure.skus import Size, read_skus
from cloud.errors import CloudError, Throttled
from cloud.ports import Clock, Sold
from policies.model import Market, Offering, Placement

_REFRESH = 3600.0  # s; restrictions change when Azure opens a size to a subscription, or closes it
_PAGES = 20  # of prices; a region's rows of a pool's sizes fill one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The prices of one market in one region."""

    clients: AzureClients
    place: AzureRegion
    market: Market


class AzureOfferings:
    """What Azure sells in the zones and of the sizes that a pool may use.

    Each region has two parts, one for each market, since each fails alone. A size that the subscription may
    not use in a zone, or not as spot, is not sold there. Where that list cannot be read, all that has a price
    counts as sold, and the part says so. On-demand prices of the configuration win. `patience`: seconds that
    the price list gets to answer.
    """

    def __init__(
        self,
        regions: Sequence[tuple[AzureClients, AzureRegion]],
        *,
        clock: Clock,
        endpoint: str = PRICES,
        patience: float = 8.0,
    ) -> None:
        self._parts = {
            f"{place.region} {market}": _Part(clients=clients, place=place, market=market)
            for clients, place in regions
            for market in Market
        }
        self._shares = [clients.share() for clients, _ in regions]
        self._clock, self._endpoint, self._patience = clock, endpoint, patience
        self._session: aiohttp.ClientSession | None = None
        self._sizes: dict[str, tuple[float, Mapping[str, Size]]] = {}
        self._reading: dict[str, asyncio.Lock] = {}

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """Every zone and size of each region and market, without prices."""
        return {
            name: tuple(
                Offering(placement=_placement(part, zone, size), price=None)
                for zone in part.place.places()
                for size in part.place.instance_types
            )
            for name, part in self._parts.items()
        }

    async def list(self, part: str) -> Sold:
        """One region's prices of one market. Raises CloudError when none of them can be read."""
        found = self._parts[part]
        place, problems = found.place, list[str]()
        try:
            sizes = await self._allowed(found.clients, place)
        except CloudError as error:
            sizes = None
            problems.append(f"what the subscription may use in {place.region} is not known: {error}")
        stated = dict(place.on_demand_prices) if found.market is Market.ON_DEMAND else {}
        prices: dict[str, float | None] = dict(stated)
        unstated = [size for size in place.instance_types if size not in stated]
        if unstated:
            try:
                prices |= await self._prices(place, unstated, found.market)
            except CloudError as error:
                if not stated:
                    raise
                problems.append(str(error))
                prices |= dict.fromkeys(unstated)
        offerings = tuple(
            Offering(placement=_placement(found, zone, size), price=prices[size])
            for zone in place.places()
            for size in place.instance_types
            if size in prices and _sold(sizes, size, place.zone_of(zone), found.market)
        )
        unread = sorted({o.placement.instance_type for o in offerings if o.price is None})
        if unread:
            problems.append(f"no {found.market} price of {', '.join(unread)} in {place.region}")
        return Sold(offerings=offerings, problem="; ".join(problems))

    async def close(self) -> None:
        """Give up this adapter's share of the lanes, and its connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        for share in self._shares:
            await share.close()

    # -- what may be used --------------------------------------------------------------------------

    async def _allowed(self, clients: AzureClients, place: AzureRegion) -> Mapping[str, Size]:
        """The sizes of a region, read anew when that is due: the list has megabytes. Raises CloudError."""
        async with self._reading.setdefault(place.region, asyncio.Lock()):
            known, now = self._sizes.get(place.region), self._clock.now()
            if known is not None and abs(now - known[0]) < _REFRESH:
                return known[1]

            def work(account: AzureAccount) -> dict[str, Size]:
                rows = account.compute().resource_skus.list(
                    filter=f"location eq '{place.region}'", api_version=SKUS_VERSION
                )
                return read_skus((row.as_dict() for row in rows if _is_wanted(row, place)), place.region)

            sizes = await clients.call(Lane.SKUS, "resource_skus.list", work, lost=CloudError)
            self._sizes[place.region] = (now, sizes)
            return sizes

    # -- prices ------------------------------------------------------------------------------------

    async def _prices(
        self, place: AzureRegion, sizes: Sequence[str], market: Market
    ) -> dict[str, float | None]:
        """By size. One that the list does not have in this market is missing. Raises CloudError."""
        what = f"prices of {place.region}"
        parameters = {"api-version": VERSION, "$filter": wanted(place.region, sizes)}
        rows, url = list[Mapping[str, Any]](), self._endpoint
        try:
            async with asyncio.timeout(self._patience):
                for _ in range(_PAGES):
                    page = await self._page(url, parameters, what)
                    rows += page.get("Items") or ()
                    url, parameters = str(page.get("NextPageLink") or ""), {}
                    if not url:
                        break
        except TimeoutError:
            raise CloudError(f"{what}: no answer within {self._patience:.0f} s") from None
        except (aiohttp.ClientError, ValueError, TypeError) as error:
            raise CloudError(f"{what}: no usable answer: {error or type(error).__name__}") from error
        found = {size: price for (size, of), price in read_prices(rows).items() if of is market}
        if not found:
            raise CloudError(f"{what}: the list has no {market} price of {', '.join(sizes)}")
        return found

    async def _page(self, url: str, parameters: Mapping[str, str], what: str) -> Mapping[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers={"User-Agent": "spot-orchestrator"})
        async with self._session.get(url, params=parameters, allow_redirects=False) as answer:
            text = await answer.text()
            if answer.status == 429:
                raise Throttled(f"{what}: status 429")
            if answer.status != 200:
                raise CloudError(f"{what}: status {answer.status}: {text[:200]}")
            page = json.loads(text)
            return page if isinstance(page, dict) else {}


def _is_wanted(row: Any, place: AzureRegion) -> bool:
    """Most rows are of what the pool does not use; these are not read further."""
    return row.name in place.instance_types and row.resource_type == "virtualMachines"


def _sold(sizes: Mapping[str, Size] | None, size: str, zone: str, market: Market) -> bool:
    if sizes is None:
        return True
    known = sizes.get(size)
    return known is not None and known.sold(zone) and (known.spot or market is not Market.SPOT)


def _placement(part: _Part, zone: str, size: str) -> Placement:
    return Placement(
        provider=PROVIDER, region=part.place.region, zone=zone, instance_type=size, market=part.market
    )
