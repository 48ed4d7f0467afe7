"""What the local cloud sells: prices and capacity now, and what each machine has cost. Reads the market."""

from __future__ import annotations

from cloud.local.config import PROVIDER, InstanceType, LocalCloudConfig
from cloud.local.market import SpotMarket
from cloud.local.table import Machine
from cloud.ports import Clock
from policies.model import Market, Offering, Placement

_HOUR = 3600.0


class Sales:
    """Offerings of one cloud. `overrides` holds a zone's capacity at a count, whatever the market says."""

    def __init__(self, config: LocalCloudConfig, market: SpotMarket, clock: Clock, origin: float) -> None:
        """`origin` is the instant of the clock at which market time was 0."""
        self._config = config
        self._market = market
        self._clock = clock
        self._origin = origin
        self._kinds = {kind.name: kind for kind in config.instance_types}
        self._regions = {series.zone: series.region for series in market.zones}
        self.overrides: dict[tuple[str, Market], int] = {}

    def market_now(self) -> float:
        """Market time now, in market seconds."""
        return (self._clock.now() - self._origin) * self._config.speed

    def sells(self, placement: Placement) -> bool:
        """True when there is such an offering, with capacity or without."""
        return (
            placement.provider == PROVIDER
            and placement.instance_type in self._kinds
            and self._regions.get(placement.zone) == placement.region
        )

    def offerings(self) -> tuple[Offering, ...]:
        """Every offering with its price now."""
        placements = [
            Placement(
                provider=PROVIDER,
                region=series.region,
                zone=series.zone,
                instance_type=kind,
                market=market,
            )
            for series in self._market.zones
            for kind in self._kinds
            for market in Market
        ]
        return tuple(Offering(placement=each, price=self.price(each)) for each in placements)

    def price(self, placement: Placement) -> float:
        """USD/h of a placement now; 0 in a zone that a later configuration has dropped."""
        factor = self._kind(placement.instance_type).price_factor
        if placement.zone not in self._regions:
            return 0.0
        if placement.market is Market.ON_DEMAND:
            return factor * self._market.zone(placement.zone).on_demand_price
        return factor * self._market.spot_price(placement.zone, self.market_now())

    def capacity(self, zone: str, instance_type: str, market: Market, at: float) -> int | None:
        """Machines that an offering can hold at market time `at`; None without limit."""
        if (zone, market) in self.overrides:
            return self.overrides[zone, market]
        if market is Market.ON_DEMAND:
            return self._config.on_demand_capacity
        return int(self._market.capacity(zone, at) * self._kind(instance_type).capacity_factor)

    def dollars(self, machine: Machine, *, on_demand: bool = False) -> float:
        """What a machine has cost up to now, in market time; `on_demand`: what it would have cost so."""
        zone, now, total = machine.placement.zone, self.market_now(), 0.0
        if zone not in self._regions:
            return 0.0
        for begin, end in machine.spells:
            until = now if end is None else end
            if on_demand or machine.placement.market is Market.ON_DEMAND:
                total += self._market.zone(zone).on_demand_price * (until - begin) / _HOUR
            else:
                total += self._market.spot_dollars(zone, begin, until)
        return total * self._kind(machine.placement.instance_type).price_factor

    def _kind(self, name: str) -> InstanceType:
        # A restart with another configuration may have dropped a type that machines still have.
        return self._kinds.get(name, InstanceType(name=name))
