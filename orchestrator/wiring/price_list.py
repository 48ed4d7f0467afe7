"""What a pool's provider lists now, without a daemon: for `validate --prices` and the doctor."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cloud.errors import CloudError
from cloud.ports import Clock, Offerings, Sold
from orchestrator.config.load import Config
from orchestrator.wiring.many_clouds import prices_of_clouds
from policies.model import Market, Offering

_PATIENCE = 20.0  # s for one type of the price list: a person waits, not a turn of the loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What is sold at which price. `missing`: on-demand prices that could not be read, in words, without
    which no sum is right; `no_spot`: the same of spot, which costs no more than on-demand. Empty: all are
    there."""

    offerings: tuple[Offering, ...]
    missing: str
    no_spot: str


async def listed(config: Config, clock: Clock) -> Listed:
    """Ask for the prices of every region, type and market that the pool may use. Raises CloudError where
    nobody bills for the pool's machines."""
    adapter = prices_of_clouds(config, clock, _PATIENCE)
    try:
        parts = list(adapter.parts())
        answers = await asyncio.gather(*(_look(adapter, part) for part in parts))
    finally:
        await adapter.close()
    problems = {
        market: "; ".join(
            answer.problem
            for part, answer in zip(parts, answers, strict=True)
            if answer.problem and part.endswith(f" {market}")
        )
        for market in Market
    }
    return Listed(
        offerings=tuple(offering for answer in answers for offering in answer.offerings),
        missing=problems[Market.ON_DEMAND],
        no_spot=problems[Market.SPOT],
    )


async def _look(adapter: Offerings, part: str) -> Sold:
    try:
        return await adapter.list(part)
    except CloudError as error:
        return Sold(offerings=(), problem=str(error))
