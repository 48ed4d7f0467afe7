"""The [pool.NAME] tables, and how they become the state that the policies take.

Durations carry a unit ("90s"), shares are percentages or fractions ("70%", 0.7), money is US dollars per
hour. What is not written is chosen here where it follows from other keys.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from cloud.engines.flags import overridden
from orchestrator.config.reload import BOTH, GATEWAY, NOW, SHARED, SIZE
from orchestrator.config.tables.adapters import MOST_ADAPTERS, adapter_rules, numbers_adapters
from orchestrator.config.tables.agents import AgentsTable
from orchestrator.config.tables.balancer import NGINX_SETTLES, BalancerTable
from orchestrator.config.tables.charge import ChargeTable
from orchestrator.config.tables.cloud import CloudConfig
from orchestrator.config.tables.cost import PoolCostTable
from orchestrator.config.tables.engine import EngineConfig
from orchestrator.config.tables.gateway import GatewayTable
from orchestrator.config.types import (
    UNLIMITED,
    Counts,
    Duration,
    Factor,
    Listed,
    MoneyOrUnlimited,
    Section,
    Share,
    Texts,
    duration_key,
    revised,
    share_key,
)
from policies.model import (
    AdaptiveRules,
    DrainRules,
    GpuRules,
    HealthRules,
    Limits,
    Patience,
    PlacementRules,
    Pool,
    RebalanceRules,
    ReturnRules,
    StandbyRules,
)

Advice = Literal["16-bit", "slots", "no-fallback", "utilisation"]
"""What `validate` and `doctor` advise a pool of, each by a name that `accepted` takes."""

_DRAIN: Final = DrainRules()
_RETURN: Final = ReturnRules()
_HEALTH: Final = HealthRules()
_STANDBY: Final = StandbyRules()
_PLACEMENT: Final = PlacementRules()
_REBALANCE: Final = RebalanceRules()
_GPU: Final = GpuRules()
_ADAPTIVE: Final = AdaptiveRules()
_LIMITS: Final = Limits()
_PATIENCE: Final = Patience()
_SPOT_SHARE: Final = Pool(name="default", replicas=1).spot_share


class DrainConfig(Section):
    """How a node is taken out of service without losing requests."""

    budget: Duration = duration_key(_DRAIN.budget, "Time that requests in flight get to finish.")
    margin: Duration = duration_key(_DRAIN.margin, "Time kept free before a notice's deadline.")
    settle: Duration = duration_key(
        _DRAIN.settle,
        "How long a node must show no request in flight before it counts as drained. The default is "
        "25s with cloud.aws.target_group and 1.5s with nginx, which may go on sending requests for so long.",
    )
    min_serving: Share = share_key(
        _DRAIN.min_serving,
        "Share of the replicas below which a noticed node keeps serving for as long as its notice allows.",
    )


class ReturnConfig(Section):
    """How the pool goes back from temporary on-demand nodes to spot."""

    hold: Duration = duration_key(
        _RETURN.hold, "Silence after a reclaim or a refusal before that placement is tried again."
    )
    stable: Duration = duration_key(
        _RETURN.stable, "How long a spot node must have been ready before its on-demand cover is given back."
    )
    at_once: int = Field(
        default=_RETURN.at_once,
        ge=1,
        description="Units launched on spot, and units of cover given back, at the same time. What is not "
        "written is twice the units of the largest node.",
    )


class HealthConfig(Section):
    """When a node counts as sick and what is done about it."""

    unhealthy_after: Duration = duration_key(
        _HEALTH.unhealthy_after, "How long probes must have failed before a node leaves the target set."
    )
    replace_after: Duration = duration_key(
        _HEALTH.replace_after, "How long probes must have failed before a node is replaced."
    )
    boot_timeout: Duration = duration_key(
        _HEALTH.boot_timeout, "Longest time from launch to ready before a node is given up."
    )
    max_unhealthy: Share = share_key(
        _HEALTH.max_unhealthy,
        "Share of sick nodes above which the fault is taken to be ours and nothing is replaced.",
    )
    boot_failures: int = Field(
        default=_HEALTH.boot_failures,
        ge=1,
        description="Boots given up in a row before a placement is avoided, and machines that a fault ends "
        "in a row before they are ready, before a market of a region is paused.",
    )
    give_up_after: int = Field(
        default=_HEALTH.give_up_after,
        ge=1,
        description="Failed boots of a pool that never had a ready node after which nothing more is "
        "launched until `orchestrator resume`. Until one of its machines was seen running, no more launches "
        "are open or failed.",
    )


class StandbyConfig(Section):
    """Warm on-demand capacity kept beyond the replicas, so that a swap fits into a notice."""

    hot: int = Field(
        default=_STANDBY.hot,
        ge=0,
        description="Ready units kept beyond the replicas. The adaptive mix finds itself how many.",
    )
    stopped: int = Field(
        default=_STANDBY.stopped,
        ge=0,
        description="Units kept as stopped machines; starting one beats a launch.",
    )


class PlacementConfig(Section):
    """What makes one offering better than another."""

    spread: Factor = share_key(
        _PLACEMENT.spread,
        "How much dearer, as a share of the price, a zone looks for each unit that is already there.",
    )
    refusal_half_life: Duration = duration_key(
        _PLACEMENT.refusal_half_life, "Time after which a capacity refusal weighs half."
    )
    reclaim_half_life: Duration = duration_key(
        _PLACEMENT.reclaim_half_life, "Time after which a reclaim weighs half."
    )


class RebalanceConfig(Section):
    """What a rebalance recommendation does: the cloud says that a spot node's risk has risen."""

    replace: bool = Field(
        default=_REBALANCE.replace,
        description="Whether such a node is replaced by a spot node elsewhere, launched first. "
        "Recommendations are far more frequent than interruptions. false: they are only journalled.",
    )
    timeout: Duration = duration_key(
        _REBALANCE.timeout,
        "How long a recommendation holds. A node that no other one could replace by then just stays.",
    )


class GpuConfig(Section):
    """What trouble of GPUs does, as node agents or a DCGM exporter on each node report it.

    A node with a broken GPU drains at once; one that is throttled or slow goes once its replacement is ready,
    one at a time. `health.max_unhealthy` holds for both.
    """

    replace: Annotated[bool, NOW] = Field(
        default=_GPU.replace,
        description="Whether nodes are replaced for their GPUs. false: faults are only shown and alerted on.",
    )
    throttled_for: Annotated[Duration, NOW] = duration_key(
        _GPU.throttled_for,
        "How long a GPU must be slowed down by heat, by the hardware or by the power supply before its node "
        "is replaced. Limits that are set, and idle GPUs, do not count.",
    )
    slow_share: Annotated[Share, NOW] = share_key(
        _GPU.slow_share,
        "Share of its peers' speed below which a node is slow: of nodes of its instance type that have work, "
        "by tokens a second or by the clocks of their GPUs. 0: none is.",
    )
    slow_for: Annotated[Duration, NOW] = duration_key(
        _GPU.slow_for, "How long a node must be slow before it is replaced."
    )
    again_after: Annotated[Duration, NOW] = duration_key(
        _GPU.again_after, "Time from one node that is replaced for being throttled or slow to the next one."
    )
    dcgm_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of NVIDIA's DCGM exporter on every node, which the daemon reads where a node's "
        "agent is silent. Not set: it reads none.",
        examples=[9400],
        json_schema_extra={"default": None},
    )


class StartsConfig(Section):
    """How long starts take, for the adaptive mix; each is used until it was observed."""

    spot: Duration = duration_key(_ADAPTIVE.spot_start, "From the launch of a spot node to ready.")
    on_demand: Duration = duration_key(
        _ADAPTIVE.on_demand_start, "From the launch of an on-demand node to ready."
    )
    standby: Duration = duration_key(_ADAPTIVE.standby_start, "From the start of a stopped standby to ready.")
    notice: Duration = duration_key(_ADAPTIVE.notice, "From a preemption notice to its deadline.")


class LimitsConfig(Section):
    """What the daemon may never exceed."""

    surge: int = Field(
        default=_LIMITS.surge,
        ge=0,
        description="Units above replicas and standby at any time; the last node may go over by a part of "
        "itself. The default is room for two of the largest nodes.",
    )
    launches_per_minute: int = Field(
        default=_LIMITS.launches_per_minute, ge=1, description="Launches within any minute."
    )
    spend_per_hour: MoneyOrUnlimited = Field(
        default=_LIMITS.spend_per_hour,
        description="Most US dollars per hour for all nodes at today's prices, or unlimited. Must be written "
        "where machines are paid for (cloud.kind = aws): `orchestrator validate` proposes an amount. A "
        "pool that a shortage of spot may put all on demand needs room for one node more to come back.",
        examples=["12.50", UNLIMITED],
        json_schema_extra={"default": UNLIMITED},
    )
    disruption: Share = share_key(
        _LIMITS.disruption, "Share of the replicas that may be drained by choice at once; at least one node."
    )


class PatienceConfig(Section):
    """How long the daemon believes what it knows."""

    stale_after: Duration = duration_key(
        _PATIENCE.stale_after, "Age above which a list of machines permits nothing destructive."
    )
    vanish_grace: Duration = duration_key(
        _PATIENCE.vanish_grace, "How long a known node may be missing from complete lists before it is gone."
    )
    effect_timeout: Duration = duration_key(
        _PATIENCE.effect_timeout, "How long an action may show no effect before it is asked again."
    )


class PoolConfig(Section):
    """One pool: how many nodes of which model, and how they are kept alive."""

    replicas: Annotated[int, SIZE] = Field(
        ge=0,
        le=10_000,
        description="Ready nodes that the pool keeps at all times; serving units, where `units` is given. "
        "0: none, with no standby either: what is there drains and ends.",
        examples=[10],
    )
    units: Counts = Field(
        default={},
        description="Serving units of a node, by instance type; a type that is not named serves 1. "
        "Everything that counts capacity counts units: replicas, the on-demand floor, standby, surge. "
        "Quote a type with a dot in its name.",
        examples=[{"p5.48xlarge": 8}],
    )
    spot_share: Annotated[Share, SIZE] = share_key(
        _SPOT_SHARE,
        "Share of the replicas on spot. The rest is the on-demand floor, rounded up to whole units.",
    )
    mix: Annotated[Literal["70/30", "adaptive"], SIZE] = Field(
        default="70/30",
        description="70/30: spot_share of the replicas on spot, the rest on demand. adaptive: the cheapest "
        "mix that holds `availability`; spot_share is then only the most that may be on spot. What is not "
        "written is then chosen for it: spot_share 100%, limits.surge as many as the replicas, and, where "
        "starts.standby fits into starts.notice, standby.stopped as many as the replicas.",
        examples=["adaptive"],
    )
    availability: Annotated[Share, SIZE] = share_key(
        _ADAPTIVE.availability,
        "Share of the wanted capacity that is to be ready over time, with mix = adaptive.",
    )
    priority: Annotated[int, NOW] = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Which pool gets nodes and dollars first, where [budget] does not hold what all of them "
        "want: the higher. Floors come before.",
    )
    on_demand_floor: Annotated[int | None, SIZE] = Field(
        default=None,
        ge=0,
        description="The on-demand floor as a number of units, instead of spot_share.",
        examples=[3],
    )
    model: Annotated[str, SHARED] = Field(
        default="",
        description="Model that the engine loads: a name or a directory. Needed for engine.kind = vllm and "
        "llamacpp, where it is a GGUF file or the USER/NAME:QUANTISATION of a hub.",
        examples=["meta-llama/Llama-3.1-8B-Instruct"],
    )
    adapters: Annotated[Texts, BOTH] = Field(
        default={},
        description="Adapters (LoRA) of the model by the names that clients ask for: where the engine finds "
        "each, a folder or file of the node, with @REVISION at its end if you like. Another source or "
        "revision of a name is loaded beside the one before and then takes its place.",
        examples=[{"sql": "/srv/lora/sql@2026-11-30"}],
    )
    adapter_slots: Annotated[int | None, NOW] = Field(
        default=None,
        ge=1,
        le=MOST_ADAPTERS,
        description="How many adapters a node holds at most, where there are more than that. What is not "
        "written is what --max-cpu-loras or --max-loras says, else 64. New nodes start with room for it.",
        examples=[32],
        json_schema_extra={"default": None},
    )
    accepted: Annotated[Listed[Advice], NOW] = Field(
        default=(),
        description="Advice of `validate` and `doctor` that is meant otherwise: it is not given again.",
        examples=[["no-fallback"]],
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="The inference server.")
    drain: Annotated[DrainConfig, NOW] = Field(
        default=DrainConfig(), description="Taking a node out of service."
    )
    back_to_spot: Annotated[ReturnConfig, NOW] = Field(
        default=ReturnConfig(), description="Going back to spot."
    )
    health: Annotated[HealthConfig, NOW] = Field(default=HealthConfig(), description="Sick nodes.")
    standby: Annotated[StandbyConfig, SIZE] = Field(default=StandbyConfig(), description="Warm capacity.")
    placement: Annotated[PlacementConfig, NOW] = Field(
        default=PlacementConfig(), description="Choice of offerings."
    )
    rebalance: Annotated[RebalanceConfig, NOW] = Field(
        default=RebalanceConfig(), description="Rebalance recommendations."
    )
    starts: Annotated[StartsConfig, NOW] = Field(default=StartsConfig(), description="Start times.")
    limits: Annotated[LimitsConfig, SIZE] = Field(default=LimitsConfig(), description="Hard limits.")
    patience: Annotated[PatienceConfig, NOW] = Field(
        default=PatienceConfig(), description="Trust in old knowledge."
    )
    accept_unproven: bool = Field(
        default=False,
        description="Whether the pool may use a cloud or a balancer that is proved by *source only*: nobody "
        "has run it against the real thing. `orchestrator doctor` says how each is proved.",
    )
    cloud: CloudConfig = Field(default=CloudConfig(), description="The source of machines.")
    gateway: Annotated[GatewayTable, GATEWAY] = Field(default=GatewayTable(), description="The gateway.")
    balancer: Annotated[Listed[BalancerTable], SHARED] = Field(
        default=(), description="Load balancers, in the place of the gateway of this host."
    )
    cost: Annotated[PoolCostTable, NOW] = Field(
        default=PoolCostTable(), description="How the cost report sees the pool."
    )
    charge: Annotated[ChargeTable, GATEWAY] = Field(
        default=ChargeTable(), description="What its tokens cost the keys of clients."
    )
    agents: AgentsTable = Field(default=AgentsTable(), description="The agents of the nodes.")
    gpu: GpuConfig = Field(default=GpuConfig(), description="Trouble of GPUs.")

    @property
    def model_name(self) -> str:
        """The model that the engine loads; a simulated engine needs none of its own."""
        return self.model or "simulated"

    def on(self, instance_type: str) -> PoolConfig:
        """The pool as its nodes of that type have it: with the flags of the engine there."""
        own = self.engine.on.get(instance_type)
        if own is None:
            return self
        args = overridden(self.engine.args, own.args)
        return revised(self, {"engine": revised(self.engine, {"args": args})})

    @property
    def served_name(self) -> str:
        """The name under which its engines serve the model."""
        return self.engine.served_name or self.model_name

    @property
    def numbers_adapters(self) -> bool:
        """Whether its engines know the adapters of the pool by number, and have no others."""
        each = (self.engine.args, *(own.args for own in self.engine.on.values()))
        return numbers_adapters(self.engine.kind, self.engine.task, tuple(chain.from_iterable(each)))

    def as_pool(self, name: str) -> Pool:
        """The wanted state as the policies take it."""
        return wanted_pool(self, name)


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
        if settings.cloud.traits.stops and settings.starts.standby <= notice_of(settings):
            found["standby", "stopped"] = settings.replicas
    if settings.cloud.target_group:
        from cloud.aws.load_balancer import PROPAGATION

        found["drain", "settle"] = max(settings.drain.settle, PROPAGATION)
    elif any(balancer.kind == "nginx" for balancer in settings.balancer):
        found["drain", "settle"] = max(settings.drain.settle, NGINX_SETTLES)
    return {key: value for key, value in found.items() if not _is_written(settings, key)}


def notice_of(settings: PoolConfig) -> float:
    """How long a preemption notice is, in seconds: as written, else what the pool's cloud gives at most."""
    notice = settings.starts.notice
    return (
        notice if _is_written(settings, ("starts", "notice")) else min(notice, settings.cloud.traits.notice)
    )


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
    if settings.on_demand_floor is not None and settings.replicas:
        share_of_spot = (settings.replicas - settings.on_demand_floor) / settings.replicas
    return Pool(
        name=name,
        replicas=settings.replicas,
        model=settings.model_name,
        priority=settings.priority,
        spot_share=share_of_spot,
        units=dict(settings.units),
        drain=DrainRules(**rules("drain")),
        back_to_spot=ReturnRules(**rules("back_to_spot")),
        health=HealthRules(**rules("health")),
        standby=StandbyRules(**rules("standby")),
        placement=PlacementRules(**rules("placement")),
        rebalance=RebalanceRules(**rules("rebalance")),
        adapters=adapter_rules(
            settings.engine.kind,
            settings.adapters,
            settings.adapter_slots,
            settings.engine.args,
            numbered=settings.numbers_adapters,
        ),
        gpu=GpuRules(**{k: v for k, v in rules("gpu").items() if k != "dcgm_port"}),
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
        notice=notice_of(settings),
    )
