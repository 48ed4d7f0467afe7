"""What a try of one node needs from a configuration: prices, the spend cap, and the ports of the daemon."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cloud.errors import CloudError
from cloud.ports import Clock
from orchestrator.config.load import Config
from orchestrator.doctor.short_lived import Passed, Said
from orchestrator.doctor.trial import Trial
from orchestrator.wiring.many_clouds import by_hand_on_clouds
from orchestrator.wiring.ports import Ports, connect, engine_with_key
from policies.limits import Budget
from policies.model import Instance, InstanceState, Market, Offering, Pool

_COSTS = (InstanceState.PENDING, InstanceState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What may be launched. `offerings`: those that the spend cap has room for, the cheapest first;
    `refusal`: why there are none, empty when there are."""

    offerings: Sequence[Offering]
    refusal: str = ""

    @property
    def dearest(self) -> float | None:
        """The highest of the known prices, USD/h."""
        return max((o.price for o in self.offerings if o.price is not None), default=None)


async def offer(config: Config, clock: Clock, market: Market) -> Offer:
    """What a try may launch. Raises CloudError, OSError."""
    ports = connect(config, clock)
    try:
        sold = await _sold(ports)
        machines = await ports.machines(config.pool_name, config.daemon.call_timeout)
    finally:
        await ports.close()
    return allowed(config.wanted, market, sold, machines)


def allowed(
    pool: Pool, market: Market, sold: Sequence[Offering], machines: Sequence[Instance] | None
) -> Offer:
    """What of the market may be launched beside the pool's machines (None: they cannot be listed). Pure."""
    wanted = [offering for offering in sold if offering.placement.market is market]
    wanted.sort(key=lambda o: (o.price is None, o.price or 0.0, str(o.placement)))
    if not wanted:
        return Offer(offerings=(), refusal=f"the configuration names nothing that is sold as {market}")
    if pool.limits.spend_per_hour is None:
        return Offer(offerings=wanted)
    if machines is None:
        text = "the pool's machines cannot be listed, so it is not known what limits.spend_per_hour leaves"
        return Offer(offerings=(), refusal=text)
    prices = {offering.placement: offering.price for offering in sold}
    paid = [prices.get(machine.placement) for machine in machines if machine.state in _COSTS]
    known = [price for price in paid if price is not None]
    budget = Budget(pool, living=0, launched_last_minute=0, spend=sum(known), unpriced=len(paid) - len(known))
    fitting = [offering for offering in wanted if not budget.refuses_cost(offering.price)]
    return Offer(offerings=fitting, refusal="" if fitting else budget.refuses_cost(wanted[0].price))


async def try_one(config: Config, clock: Clock, offered: Offer, said: Said) -> Sequence[Passed]:
    """Launch one node, follow it and end it: see `Trial.run`. Raises OSError for an unreadable key."""
    ports = connect(config, clock)
    engine = engine_with_key(config, clock)
    try:
        trial = Trial(
            instances=ports.instances,
            engine=engine,
            clock=clock,
            pool=config.pool_name,
            command=ports.command,
            offerings=offered.offerings,
            token=f"try-node/{secrets.token_hex(8)}",
            within=config.wanted.health.boot_timeout,
            said=said,
            by_hand=by_hand_on_clouds(config),
        )
        return await trial.run()
    finally:
        await engine.close()
        await ports.close()


async def _sold(ports: Ports) -> Sequence[Offering]:
    """What is sold, with prices as far as they can be read."""
    found: list[Offering] = []
    for name, without_prices in ports.offerings.parts().items():
        try:
            found += (await ports.offerings.list(name)).offerings
        except CloudError:
            found += without_prices
    return found
