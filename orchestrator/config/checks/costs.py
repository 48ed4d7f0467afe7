"""What can be said of a pool's cost before anything runs: by the prices of its file or its local cloud."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import UNLIMITED
from policies import bill
from policies.model import Market, Offering, Placement

if TYPE_CHECKING:
    from cloud.local.config import LocalCloudConfig

Found = tuple[tuple[str, ...], str]  # key path, sentence

_ADVICE: Final = f'raise the cap to what the pool may cost, lower the floor, or write "{UNLIMITED}"'


def stated_offerings(pool: PoolConfig) -> tuple[Offering, ...]:
    """What the file itself says that is sold on demand: empty unless it has a price for everything."""
    found: list[Offering] = []
    for provider, table in zip(pool.cloud.kinds, pool.cloud.tables, strict=True):
        for region, prices in table.prices().items():
            if not prices.keys() >= set(table.kinds()):
                return ()
            found += (_offering(provider, region, "", kind, prices[kind]) for kind in table.kinds())
    return tuple(found)


def local_offerings(cloud: LocalCloudConfig) -> tuple[Offering, ...]:
    """What a local cloud sells; empty where its market changes with time."""
    from cloud.local.config import PROVIDER, ConstantSource

    if not isinstance(cloud.market, ConstantSource):
        return ()
    return tuple(
        _offering(PROVIDER, cloud.market.region, zone.zone, kind.name, price * kind.price_factor, market)
        for zone in cloud.market.zones
        for kind in cloud.instance_types
        for market, price in ((Market.ON_DEMAND, zone.on_demand_price), (Market.SPOT, zone.spot_price))
    )


def missing_cap(at: tuple[str, ...], pool: PoolConfig, offerings: Sequence[Offering]) -> Iterator[Found]:
    """Machines that somebody bills for, and no word of how much they may cost. `at` ends with the pool's
    name; no offerings: no price is known."""
    if not pool.cloud.bills or "spend_per_hour" in pool.limits.model_fields_set:
        return
    wanted = pool.as_pool(at[-1]) if offerings else None
    figure = wanted and bill.proposed_cap(wanted, bill.prices_of(wanted, offerings))
    write = (
        f'write spend_per_hour = "{figure:.2f}" (what replicas, standby and surge may cost at most '
        "while spot nodes that are taken bill on)"
        if figure
        else "write the most US dollars that it may cost an hour (`orchestrator validate --prices` asks "
        f"{pool.cloud.bills}'s price list and proposes it)"
    )
    yield (
        (*at, "limits", "spend_per_hour"),
        f"is missing: a pool on {pool.cloud.bills} does not start without a cap; {write}, or "
        f'spend_per_hour = "{UNLIMITED}"',
    )


def cost_errors(at: tuple[str, ...], pool: PoolConfig, offerings: Sequence[Offering]) -> Iterator[Found]:
    """A cap under which the floor could never be bought. `at` ends with the pool's name."""
    wanted = pool.as_pool(at[-1])
    text = bill.below_floor(wanted, bill.prices_of(wanted, offerings))
    if text:
        yield (*at, "limits", "spend_per_hour"), f"{text}; {_ADVICE}"


def _offering(
    provider: str, region: str, zone: str, kind: str, price: float, market: Market = Market.ON_DEMAND
) -> Offering:
    place = Placement(provider=provider, region=region, zone=zone, instance_type=kind, market=market)
    return Offering(placement=place, price=price)
