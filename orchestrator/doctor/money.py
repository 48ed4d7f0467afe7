"""What a pool may cost, judged by the prices of today."""

from __future__ import annotations

from orchestrator.doctor.findings import Findings, fail, ok, skipped, warn
from orchestrator.words import money
from policies import bill
from policies.bill import Prices
from policies.model import Pool


def cap(pool: Pool, prices: Prices, missing: str) -> Findings:
    """Whether the spend cap leaves room for what is wanted. `missing`: prices that could not be read."""
    most, usual = bill.ceiling(pool, prices), bill.usual(pool, prices)
    if missing:
        return [skipped(missing)]
    if most is None or usual is None:
        return [skipped("no price is listed for what the pool may use")]
    sums = (
        f"usually about {money(usual)} an hour, and at most {money(most)} with all that replicas, standby "
        "and surge allow"
    )
    proposed = f'write spend_per_hour = "{bill.proposed_cap(pool, prices):.2f}" to hold nothing back'
    limit = pool.limits.spend_per_hour
    if limit is None:
        return [ok(f"{sums}; limits.spend_per_hour is unlimited")]
    if text := bill.below_floor(pool, prices):
        return [fail(f"{text}; {sums}", proposed)]
    if text := bill.below_usual(pool, prices):
        return [warn(f"{text}; {sums}", proposed)]
    return [ok(f"{sums}; the cap is {money(limit)}")]
