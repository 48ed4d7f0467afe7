"""From the settings of a pool to the state that the policies take: what is not written is chosen here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    from orchestrator.config.load import PoolConfig


Key = tuple[str, ...]
"""The path of a key within the table of a pool."""


def chosen(settings: PoolConfig) -> dict[Key, Any]:
    """The values of keys that are not written, where they follow from other keys."""
    found: dict[Key, Any] = {}
    # In units, room for two of the largest nodes: one can be replaced whatever the rounding to whole
    # nodes takes up (docs/decisions/0011).
    largest = max(settings.units.values(), default=1)
    adaptive = settings.mix == "adaptive"
    surge = settings.limits.surge * largest
    found["limits", "surge"] = max(surge, settings.replicas) if adaptive else surge
    found["back_to_spot", "at_once"] = settings.back_to_spot.at_once * largest
    if adaptive:
        # Surplus spot is how the adaptive mix insures itself, and a stopped standby that is ready within the
        # notice covers a loss for the price of a disk: nothing does so more cheaply.
        found["spot_share",] = 1.0
        if settings.starts.standby <= settings.starts.notice:
            found["standby", "stopped"] = settings.replicas
    if settings.cloud.kind == "aws" and settings.cloud.aws.target_group:
        from cloud.aws.load_balancer import PROPAGATION

        found["drain", "settle"] = max(settings.drain.settle, PROPAGATION)
    return {key: value for key, value in found.items() if not _is_written(settings, key)}


def _is_written(settings: PoolConfig, key: Key) -> bool:
    *tables, name = key
    table: Any = settings
    for part in tables:
        table = getattr(table, part)
    return name in table.model_fields_set


def wanted_pool(settings: PoolConfig, name: str) -> Pool:
    """The pool of that name with these settings."""
    choice = chosen(settings)

    def rules(table: str) -> dict[str, Any]:
        found: dict[str, Any] = getattr(settings, table).model_dump()
        return found | {key[1]: value for key, value in choice.items() if key[0] == table}

    share_of_spot = choice.get(("spot_share",), settings.spot_share)
    if settings.on_demand_floor is not None:
        share_of_spot = (settings.replicas - settings.on_demand_floor) / settings.replicas
    return Pool(
        name=name,
        replicas=settings.replicas,
        model=settings.model_name,
        spot_share=share_of_spot,
        units=dict(settings.units),
        drain=DrainRules(**rules("drain")),
        back_to_spot=ReturnRules(**rules("back_to_spot")),
        health=HealthRules(**rules("health")),
        standby=StandbyRules(**rules("standby")),
        placement=PlacementRules(**rules("placement")),
        rebalance=RebalanceRules(**rules("rebalance")),
        adaptive=_adaptive_rules(settings),
        limits=Limits(**rules("limits")),
        patience=Patience(**rules("patience")),
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
