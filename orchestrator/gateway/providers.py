"""All providers of a gateway, and what they share: the spend book, and their metrics."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from cloud.ports import Clock
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.config import GatewayConfig, GatewayError, ProviderSpec
from orchestrator.gateway.endings import Endings
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.provider import ProviderBackend
from orchestrator.gateway.provider_metrics import ProviderMetrics
from orchestrator.gateway.spend_book import SpendBook
from orchestrator.gateway.spend_file import Unusable, spend_rows
from policies.routing import Kind
from policies.spend import PICO

_LOOK = 5.0
"""Seconds between two looks at what other gateways booked."""


class Providers:
    """Backends for the providers `specs` of a configuration, by name.

    Make it inside the running event loop. `book` takes what they cost, None without a spend file. `stopping`
    tells whether clients should reconnect. Raises GatewayError.
    """

    def __init__(
        self,
        config: GatewayConfig,
        specs: Sequence[ProviderSpec],
        *,
        book: SpendBook | None,
        metrics: GatewayMetrics,
        endings: Endings,
        refusals: Refusals,
        clock: Clock,
        rng: random.Random,
        stopping: Callable[[], bool],
    ) -> None:
        self.backends: dict[str, ProviderBackend] = {}
        self._clock = clock
        self._looking: asyncio.Task[None] | None = None
        if not specs:
            return
        if book is None:
            raise GatewayError("gateway: spend_file: is missing; what providers cost is kept there")
        self._book = book
        self._shown = shown = ProviderMetrics(
            metrics.registry,
            states=lambda: {name: backend.state() for name, backend in self.backends.items()},
            caps={
                route.name: route.usd_per_day_pico
                for route in config.routes
                if route.usd_per_day_pico is not None
            },
            today=lambda: book.today,
            trouble=lambda: book.trouble,
        )
        for spec in specs:
            try:
                self.backends[spec.name] = ProviderBackend(
                    spec,
                    book=book,
                    metrics=shown,
                    endings=endings,
                    refusals=refusals,
                    clock=clock,
                    rng=rng,
                    stopping=stopping,
                    answer_limit=config.answer_limit,
                    models=_models(config, spec.name),
                )
            except (OSError, ValueError) as error:
                raise GatewayError(f"gateway: provider {spec.name!r}: {error}") from None
        self._looking = asyncio.create_task(self._look(), name="spend")

    def describe(self) -> list[dict[str, Any]]:
        """The providers as GET /v1/routes shows them. Money is in US dollars, of this UTC day."""
        return [self._row(name, backend) for name, backend in self.backends.items()]

    async def close(self) -> None:
        """Let go of connections. Requests must have ended."""
        if self._looking is None:
            return
        self._looking.cancel()
        await asyncio.wait([self._looking])
        for backend in self.backends.values():
            await backend.close()

    def _row(self, name: str, backend: ProviderBackend) -> dict[str, Any]:
        state, today = backend.state(), self._book.today
        return {
            "name": name,
            "kind": backend.spec.kind,
            "state": state.trouble or "is well",
            "closed": state.closed,
            "in_flight": state.in_flight,
            "in_flight_limit": state.limit,
            "spent_today_usd": today.amount(provider=name) / PICO,
            "held_usd": today.held(provider=name) / PICO,
            "cap_usd": None if state.cap is None else state.cap / PICO,
            "over_cap": {
                route: count for (provider, route), count in self._shown.over_cap.items() if provider == name
            },
            "spend_file": self._book.trouble or "is well",
            "today": spend_rows(today, name),
        }

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(Unusable):
                await self._book.totals()
            await self._clock.sleep(_LOOK)


def _models(config: GatewayConfig, provider: str) -> set[str]:
    """The models of a provider that routes name."""
    return {
        backend.model
        for route in config.routes
        for backend in route.backends
        if backend.kind is Kind.PROVIDER and backend.name == provider
    }
