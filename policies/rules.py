"""The rules of a pool: what each policy may do and how patient it is. Fields of `policies.model.Pool`.

Durations are seconds, money is US dollars, shares are fractions of one, capacity is counted in units.
"""

from __future__ import annotations

from policies.value import value


@value
class DrainRules:
    """How a node is taken out of service. See `policies.drain`."""

    budget: float = 30.0  # s that requests in flight get to finish
    margin: float = 5.0  # s kept free before a notice's deadline
    settle: float = 1.0  # s a node must show no request in flight before it counts as drained
    min_serving: float = 0.75  # share of wanted below which a noticed node keeps serving as long as it can


@value
class ReturnRules:
    """How the pool goes back from on-demand cover to spot. See `policies.return_to_spot`."""

    hold: float = 300.0  # s of silence after a reclaim or a refusal before that placement is tried again
    stable: float = 30.0  # s that a spot node must have been ready before its cover is given back
    at_once: int = 2  # units launched on spot, and units of cover given back, at the same time


@value
class HealthRules:
    """When a node counts as sick and what is done about it. See `policies.health`."""

    unhealthy_after: float = 5.0  # s of failed probes before a node leaves the target set
    replace_after: float = 30.0  # s of failed probes before a node is replaced
    boot_timeout: float = 900.0  # s from launch to ready before a node is given up
    max_unhealthy: float = 0.3  # share of nodes; above it the fault may be ours and none is ended first
    boot_failures: int = 3  # boots given up in a row before a placement is avoided
    give_up_after: int = 3  # failed boots of a pool that never had a ready node before none is launched


@value
class StandbyRules:
    """Warm on-demand capacity kept beyond the wanted units, in units. See `policies.standby`."""

    hot: int = 0
    stopped: int = 0


@value
class PlacementRules:
    """What makes one offering better than another. See `policies.placement`."""

    spread: float = 0.5  # how much dearer, as a share of the price, a zone looks per unit already there
    refusal_half_life: float = 180.0  # s after which a refusal weighs half
    reclaim_half_life: float = 1800.0  # s after which a reclaim weighs half


@value
class RebalanceRules:
    """What a rebalance recommendation does. See `policies.rebalance`."""

    replace: bool = False  # whether such a node is replaced at all
    timeout: float = 600.0  # s for which a recommendation holds; a node still there then just stays


@value
class AdaptiveRules:
    """The availability that the adaptive mix holds, and how long starts take. See `policies.adaptive`.

    Start times and the notice are seconds, and only hold until they were observed.
    """

    availability: float = 0.999  # share of wanted capacity that is ready, over time
    spot_start: float = 180.0  # from launch to ready
    on_demand_start: float = 180.0
    standby_start: float = 75.0  # from starting a stopped standby to ready
    notice: float = 120.0  # from a notice to its deadline


@value
class Limits:
    """What the daemon may never exceed. See `policies.limits`."""

    surge: int = 2  # units above wanted + standby at any time; the last node may go over
    launches_per_minute: int = 20
    spend_per_hour: float | None = None  # USD/h of all nodes and open launches at today's prices
    disruption: float = 0.1  # share of wanted that may be drained by choice at once; at least one node


@value
class Patience:
    """How long the daemon believes what it knows."""

    stale_after: float = 30.0  # s; older instance lists permit nothing destructive
    vanish_grace: float = 15.0  # s a known node may be missing from complete lists before it counts as gone
    effect_timeout: float = 60.0  # s before an action without visible effect is asked again


@value
class GpuRules:
    """What trouble of GPUs does to a pool. See `policies.gpu_health`."""

    replace: bool = True  # whether a node is replaced for it at all; else people are told
    throttled_for: float = 600.0  # s of slowdown by heat or by the power supply before a node is replaced
    slow_share: float = 0.5  # of its peers' speed, below which a node is slow; 0: none is
    slow_for: float = 600.0  # s for which it must be slow before it is replaced
    again_after: float = 3600.0  # s from one replacement for a doubt to the next one
