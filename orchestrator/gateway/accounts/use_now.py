"""What keys use at this moment, as `orchestrator keys list` shows it beside their limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloud.ports import Clock
from orchestrator.gateway.accounts.limit_file import KeyUse, read_use
from orchestrator.gateway.spend_file import read_totals


@dataclass(frozen=True, slots=True, kw_only=True)
class UseNow:
    """Requests and tokens of the minute that ends now and requests in flight, which are known of keys with
    such limits alone; `usd`: picodollars (1e-12 USD) of this UTC day, what is held for requests in flight
    included.
    """

    requests: int = 0
    tokens: int = 0
    in_flight: int = 0
    usd: int = 0


def use_now(usage_file: Path, spend_file: Path, clock: Clock) -> dict[str, UseNow]:
    """What each key uses, by name; a key that is not among them uses nothing. Files that are not there say so
    of all. Raises Unusable.
    """
    counts = read_use(usage_file, clock.steady())
    [today] = read_totals(spend_file, clock.now())
    found = {}
    for key in sorted(counts.keys() | {line.key for line in today.by_key}):
        use = counts.get(key, KeyUse())
        found[key] = UseNow(
            requests=use.requests, tokens=use.tokens, in_flight=use.in_flight, usd=today.of_key(key)
        )
    return found
