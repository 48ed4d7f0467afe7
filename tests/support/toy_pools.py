"""What scenes and toy clouds are made of: placements, pools with short waits, and the actions of a plan."""

from __future__ import annotations

from typing import Any, TypeVar

from policies.actions import Launch, Plan, Start, Stop, Terminate
from policies.events import IntentOpened
from policies.model import (
    DrainRules,
    HealthRules,
    InstanceState,
    Limits,
    Market,
    Patience,
    Placement,
    PlacementRules,
    Pool,
    ReturnRules,
)

A = TypeVar("A")

ENDED = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
"""Ended or about to."""

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND


def place(zone: str = "a", market: Market = Market.SPOT, kind: str = "gpu") -> Placement:
    """A placement of the toy region."""
    return Placement("toy", "r", zone, kind, market)


def quick_pool(replicas: int = 10, **changes: Any) -> Pool:
    """A pool whose waits are short, so that a run of minutes shows what takes hours."""
    rules: dict[str, Any] = {
        "name": "p",
        "replicas": replicas,
        "drain": DrainRules(budget=10.0, margin=2.0, settle=1.0),
        "back_to_spot": ReturnRules(hold=30.0, stable=10.0, at_once=2),
        "health": HealthRules(unhealthy_after=4.0, replace_after=10.0, boot_timeout=120.0),
        "placement": PlacementRules(refusal_half_life=15.0, reclaim_half_life=60.0),
        "limits": Limits(surge=2, launches_per_minute=60),
        "patience": Patience(stale_after=20.0, vanish_grace=10.0, effect_timeout=10.0),
    }
    return Pool(**{**rules, **changes})


def of_kind(plan: Plan, kind: type[A]) -> list[A]:
    """The actions of a plan that are of one type."""
    return [a for a in plan.actions if isinstance(a, kind)]


def opened(now: float, action: Launch | Start | Stop | Terminate) -> IntentOpened:
    """The journal's record of an action that calls the world."""
    return IntentOpened(
        at=now,
        token=action.token,
        kind=action.kind,
        node=getattr(action, "node", ""),
        placement=getattr(action, "placement", None),
        standby=getattr(action, "standby", None),
        replaces=getattr(action, "replaces", ""),
        price=getattr(action, "price", 0.0),
        cause=getattr(action, "cause", None),
        reason=action.reason,
    )
