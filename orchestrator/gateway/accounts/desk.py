"""What keeps the limits, dollars and usage of keys in one process: its books, its gate, its answers."""

from __future__ import annotations

from cloud.ports import Clock
from orchestrator.gateway.accounts.charge import Charge
from orchestrator.gateway.accounts.gate import Gate
from orchestrator.gateway.accounts.limit_book import LimitBook
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.accounts.usage_book import UsageBook
from orchestrator.gateway.config import GatewayConfig, GatewayError, PoolGate
from orchestrator.gateway.endings import Endings
from orchestrator.gateway.metering import Metering
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.spend_book import SpendBook


class Desk:
    """Make it inside the running event loop. `spend` takes what costs, None where nothing does or there is no
    file for it; `usage` what was used, once it is started.
    """

    def __init__(
        self, config: GatewayConfig, *, endings: Endings, metrics: GatewayMetrics, clock: Clock
    ) -> None:
        self._endings = endings
        self._clock = clock
        self.spend: SpendBook | None = None
        if config.spend_file is not None and (config.providers or any(gate.charge for gate in config.pools)):
            self.spend = SpendBook(config.spend_file, clock)
        self.usage = metrics.usage.book = UsageBook(config.usage_file, clock)
        self.metering = Metering(self.usage, metrics.usage, config.pools, routed=config.routed, now=clock.now)
        self.refusals = Refusals(metrics.registry, clock)
        self.limits = LimitBook(config.usage_file, clock)
        self.gate = Gate(self.limits, self.refusals, registry=metrics.registry, clock=clock)

    def charge(self, gate: PoolGate) -> Charge | None:
        """What charges the requests to a pool, None where nothing is charged. Raises GatewayError."""
        if gate.charge is None:
            return None
        if self.spend is None:
            raise GatewayError("gateway: spend_file: is missing; what pools charge keys is kept there")
        return Charge(
            gate.name,
            gate.charge,
            book=self.spend,
            refusals=self.refusals,
            endings=self._endings,
            clock=self._clock,
        )

    async def close(self) -> None:
        """Write what is owed, and let go of the files. Requests must have ended."""
        if self.spend is not None:
            await self.spend.close()
        await self.usage.close()
        await self.limits.close()
