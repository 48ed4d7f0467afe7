"""From the settings of a pool to the state that the policies take: what is not written is chosen here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from policies.model import (
    AdaptiveRules,
    DrainRules,
    HealthRules,
    Limits,
    Patience,
    PlacementRules,
    Pool,
    RebalanceRules,
    ReturnRules,
    StandbyRules,
)

if TYPE_CHECKING:
    from orchestrator.config import PoolConfig


def wanted_pool(settings: PoolConfig, name: str) -> Pool:
    """The pool of that name with these settings."""
    adaptive = _adaptive_rules(settings)
    share_of_spot = settings.spot_share
    if settings.on_demand_floor is not None:
        share_of_spot = (settings.replicas - settings.on_demand_floor) / settings.replicas
    elif adaptive is not None and "spot_share" not in settings.model_fields_set:
        share_of_spot = 1.0
    limits = Limits(**settings.limits.model_dump())
    back_to_spot = ReturnRules(**settings.back_to_spot.model_dump())
    # In units, room for two of the largest nodes: one can be replaced whatever the rounding to whole
    # nodes takes up (docs/decisions/0011).
    largest = max(settings.units.values(), default=1)
    if "surge" not in settings.limits.model_fields_set:
        limits = replace(limits, surge=limits.surge * largest)
    if "at_once" not in settings.back_to_spot.model_fields_set:
        back_to_spot = replace(back_to_spot, at_once=back_to_spot.at_once * largest)
    if adaptive is not None and "surge" not in settings.limits.model_fields_set:
        # Surplus spot is how the adaptive mix insures itself.
        limits = replace(limits, surge=max(limits.surge, settings.replicas))
    standby = StandbyRules(**settings.standby.model_dump())
    quick = settings.starts.standby <= settings.starts.notice
    if adaptive is not None and quick and "stopped" not in settings.standby.model_fields_set:
        # Ready within the notice for the price of a disk: nothing covers a loss more cheaply.
        standby = replace(standby, stopped=settings.replicas)
    return Pool(
        name=name,
        replicas=settings.replicas,
        model=settings.model_name,
        spot_share=share_of_spot,
        units=dict(settings.units),
        drain=DrainRules(**settings.drain.model_dump()),
        back_to_spot=back_to_spot,
        health=HealthRules(**settings.health.model_dump()),
        standby=standby,
        placement=PlacementRules(**settings.placement.model_dump()),
        rebalance=RebalanceRules(**settings.rebalance.model_dump()),
        adaptive=adaptive,
        limits=limits,
        patience=Patience(**settings.patience.model_dump()),
    )


def _adaptive_rules(settings: PoolConfig) -> AdaptiveRules | None:
    if settings.mix != "adaptive":
        return None
    return AdaptiveRules(
        availability=settings.availability,
        spot_start=settings.starts.spot,
        on_demand_start=settings.starts.on_demand,
        standby_start=settings.starts.standby,
        notice=settings.starts.notice,
    )
