"""Books of a cost report for tests: a pool, an API, and what happened."""

from __future__ import annotations

from typing import Any

from policies.cost_rows import Books, PoolSettings, ProviderDay, RouteSettings, UsageHour
from policies.economics import BaselineHour, SpendHour
from policies.model import Market
from policies.spend import PICO, Price, Rates

DAY0 = 20_000 * 24
"""The first hour of 2024-10-04."""
API = "claude/sonnet"
PRICE = Price(Rates.of(input="3", output="15", cached="0.30", cache_write="3.75"))


def machine(hour: int = DAY0, usd: float = 3.0, **changes: Any) -> SpendHour:
    """One node for an hour."""
    values: dict[str, Any] = {
        "pool": "chat", "hour": hour, "region": "r", "zone": "a", "instance_type": "g", "market": Market.SPOT,
        "seconds": 3600.0, "usd": usd, "unit_seconds": 3600.0, "ready_unit_seconds": 3600.0,
    }  # fmt: skip
    return SpendHour(**(values | changes))


def baseline(hour: int = DAY0, usd: float = 8.0, **changes: Any) -> BaselineHour:
    return BaselineHour(
        **({"pool": "chat", "hour": hour, "on_demand_usd": usd, "wanted_unit_seconds": 3600.0} | changes)
    )


def used(hour: int = DAY0, **changes: Any) -> UsageHour:
    values: dict[str, Any] = {
        "hour": hour, "key": "team", "route": "assistant", "backend": "pool/chat", "requests": 1,
        "fresh": 1000, "output": 200,
    }  # fmt: skip
    return UsageHour(**(values | changes))


def provider_day(day: str = "2024-10-04", usd: float = 1.0, **changes: Any) -> ProviderDay:
    values: dict[str, Any] = {
        "day": day, "provider": "claude", "route": "assistant", "model": "sonnet", "key": "team",
        "usd": round(usd * PICO), "requests": 10, "fresh": 1000, "output": 100,
    }  # fmt: skip
    return ProviderDay(**(values | changes))


def pool(**changes: Any) -> PoolSettings:
    return PoolSettings(**({"name": "chat", "model": "llama", "rate": 500.0, "compare": API} | changes))


def books(**changes: Any) -> Books:
    values: dict[str, Any] = {
        "since": DAY0, "until": DAY0 + 24, "now": (DAY0 + 24) * 3600.0, "pools": (pool(),),
        "routes": (RouteSettings(name="assistant", pools=("chat",), providers=(API,)),),
        "prices": {API: PRICE},
    }  # fmt: skip
    return Books(**(values | {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}))
