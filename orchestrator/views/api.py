"""The JSON that the control API answers and that `-o json` prints, as types.

One place says what every field means; the JSON Schemas in `orchestrator/schemas/` are made from it. Only the
standard library is imported here, so that reading commands start fast. Rules: times are seconds since the
epoch, durations seconds, prices US dollars per hour, money US dollars, shares fractions of one. A field that
has no value now is null, never missing. Within one schema number fields are only ever added.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from orchestrator.views.routes import GatewaySeenView, ProviderNowView, RouteNowView
from orchestrator.views.starts import PastStartView, StartKindView

PoolState = Literal["ok", "degraded", "below-floor", "paused", "starting", "down", "all-on-demand", "empty"]


class PausedView(TypedDict):
    """Who stopped the daemon from acting, why, and until when."""

    by: Annotated[str, "who paused"]
    reason: Annotated[str, "why, in the operator's words"]
    until: Annotated[float | None, "when acting resumes by itself; null means never"]


class RejectedView(TypedDict):
    """A configuration that was offered and not taken up."""

    at: float
    problems: Annotated[list[str], "file:line: key: what is wrong and what to do"]
    in_force: Annotated[str, "what holds instead, in words"]


class ConfigStateView(TypedDict):
    """The configuration in force, and whether the file holds another one that was rejected."""

    file: Annotated[str | None, "where it came from; null when it was built in memory"]
    loaded_at: float
    rejected: Annotated[RejectedView | None, "the newest reload, if it was rejected; null after a good one"]


class DaemonView(TypedDict):
    """The daemon itself."""

    version: str
    pid: int
    epoch: Annotated[int, "number of the lease under which it acts; rises with every change of holder"]
    uptime_s: float
    leading: Annotated[bool, "true while it holds the lease; otherwise it only watches"]
    database_silent_s: Annotated[float | None, "age of its database's last answer, beyond the lease"]
    leader: Annotated[str | None, "who leads instead, while this daemon stands by; null otherwise"]
    paused: Annotated[PausedView | None, "set while the daemon observes but does not act"]
    journal_ok: Annotated[bool, "the journal accepts writes; without it nothing destructive happens"]
    last_turn_s: Annotated[float, "seconds since the last completed turn of the loop"]
    turns: Annotated[int, "turns of the loop since the daemon started"]
    config: ConfigStateView


class NoticeView(TypedDict):
    """A word that a node will not last, and what was done about it so far."""

    node: str
    kind: Annotated[str, "interruption, rebalance, maintenance, stop or state-change"]
    source: Annotated[str, "who said so"]
    confidence: Annotated[str, "confirmed (by the cloud) or reported (could be forged)"]
    seen_at: float
    deadline: Annotated[float | None, "when the node goes away; null where the kind has no deadline"]
    remaining_s: Annotated[float | None, "seconds to the deadline, negative once it has passed"]
    stage: Annotated[str, "how far taking the node out of service is"]
    in_flight: Annotated[int | None, "requests the node still owes an answer to; null when not known"]
    replacement: Annotated[str | None, "the node that takes over"]
    replacement_phase: str | None
    text: Annotated[str, "the same as one sentence"]


class SwapView(TypedDict):
    """One node replaced by another, with the time of each stage."""

    outgoing: str
    incoming: str | None
    stage: str
    noticed_at: float
    detached_at: float | None
    drained_at: float | None
    replaced_at: float | None
    deadline: float | None
    cause: str


class ContinuationView(TypedDict):
    """How an answer that a node began is finished by another node when this one is lost."""

    way: Annotated[
        str,
        "derender: every kind of answer; clean: plain text, from the last clean boundary; none: such an "
        "answer ends with an error",
    ]
    why: Annotated[str, "why not every kind, empty where there is nothing to say"]


class NodeView(TypedDict):
    """One node with the reason for its state."""

    id: str
    market: Annotated[str, "spot or on-demand"]
    provider: Annotated[str, "the cloud whose machine it is: aws, gcp, azure, skypilot, local"]
    zone: str
    instance_type: str
    units: Annotated[int, "serving units that it counts for when ready"]
    phase: Annotated[str, "pending, starting, ready, stopped, draining, terminating or gone"]
    age_s: Annotated[float, "seconds since its launch"]
    in_flight: Annotated[int | None, "running + waiting requests; null when not known"]
    running: int | None
    waiting: int | None
    target: Annotated[
        str | None,
        "its state in the load balancer: unknown while that does not answer, null: not there",
    ]
    attached: Annotated[bool, "we want it in the load balancer's target set"]
    healthy: bool
    conditions: Annotated[list[str], "noticed, reported, cordoned, unhealthy, standby, and the like"]
    price: Annotated[float | None, "US dollars per hour now; null when not known"]
    why: Annotated[str, "why the node is as it is"]
    address: Annotated[str, "the engine's host:port, empty until it is known"]
    launched_at: float
    token: Annotated[str, "idempotency token of its launch"]
    build: Annotated[str, "stands for what it was launched to run; empty where nobody can tell"]
    adapters: Annotated[list[str], "those that it gets requests for, each with its revision"]
    continuation: Annotated[
        ContinuationView | None, "null while no gateway has asked its engine, or where no gateway is used"
    ]
    pool: NotRequired[Annotated[str, "in lists over several pools"]]


class FailedBootView(TypedDict):
    """A machine that never became ready and was ended, or ended by itself."""

    node: str
    at: Annotated[float, "when it was given up, or ended"]
    placement: str
    why: Annotated[str, "in the provider's words where it ended the machine"]
    console: Annotated[list[str], "the last lines that it wrote, printable; its own word"]
    remedy: Annotated[str | None, "what can be done about it, as far as its words are known"]
    commands: Annotated[list[str], "to type for that; words in capitals are to be put in"]


class PoolDayView(TypedDict):
    """What a million tokens cost in the last 24 hours, as `orchestrator cost` says it."""

    usd_per_mtok: Annotated[float | None, "US dollars per million tokens"]
    usd_per_mtok_people: Annotated[float | None, "the same with people's work"]
    api_usd_per_mtok: Annotated[float | None, "what the API asks for the same tokens"]
    utilisation: float | None
    break_even_utilisation: Annotated[float | None, "above which the pool is cheaper than the API"]


class PoolView(TypedDict):
    """One pool: wanted against actual, money, notices, swaps, nodes.

    All counts of capacity are serving units, which are nodes where `units` is empty.
    """

    name: str
    model: str
    units: Annotated[dict[str, int], "units of a node by instance type; every other type serves 1"]
    wanted: Annotated[int, "replicas"]
    ready: int
    ready_nodes: Annotated[int, "nodes that serve the ready units"]
    serving: Annotated[int, "units that clients can reach now, by the load balancer's own word"]
    spot_ready: int
    on_demand_ready: int
    spot_wanted: int
    on_demand_floor: Annotated[int, "on-demand units that the mix always holds"]
    spot_share: Annotated[float, "spot share of the ready units"]
    temporary_on_demand: Annotated[int, "on-demand units above the floor that cover for spot"]
    standby_hot: int
    standby_stopped: int
    state: PoolState
    cost_per_hour: Annotated[float | None, "null when the price of some node is not known"]
    on_demand_cost_per_hour: Annotated[
        float | None, "what the wanted units would cost on-demand; null when no such price is known"
    ]
    saved_share: Annotated[
        float | None,
        "1 - cost / on-demand cost, negative where the pool costs more; null when one of them is not known",
    ]
    spend_cap_per_hour: Annotated[float | None, "limits.spend_per_hour; null when it is unlimited"]
    spot_lost_at: Annotated[
        float | None, "since when spot cannot be had and on-demand stands in; null while it can, or not known"
    ]
    spot_next_try_s: Annotated[float | None, "seconds until spot is tried again; null where none is to come"]
    spent_usd: Annotated[float, "since the journal began"]
    saved_usd: Annotated[float, "against on-demand, since the journal began"]
    day: NotRequired[Annotated[PoolDayView, "missing while nothing was served or it is not read yet"]]
    notices: list[NoticeView]
    swaps: list[SwapView]
    nodes: list[NodeView]
    failed_boots: Annotated[list[FailedBootView], "the newest ones, oldest first"]
    problems: Annotated[list[str], "what is wrong now, one sentence each"]
    notes: Annotated[list[str], "why the pool is as it is"]


class StatusView(TypedDict):
    """GET /v1/status: everything an operator needs to see first."""

    schema: Literal["status/1"]
    at: float
    daemon: DaemonView
    pools: list[PoolView]
    gateway: NotRequired[Annotated[GatewaySeenView, "only where requests go by the models that they name"]]
    routes: NotRequired[Annotated[list[RouteNowView], "only where requests go by the models that they name"]]
    providers: NotRequired[
        Annotated[list[ProviderNowView], "only where requests go by the models that they name"]
    ]


class NodesView(TypedDict):
    """`orchestrator nodes -o json`: the nodes of every pool."""

    schema: Literal["nodes/1"]
    at: float
    nodes: list[NodeView]


class EventView(TypedDict):
    """One entry of the journal."""

    seq: Annotated[int, "number of the entry; rises by the order of writing"]
    at: float
    kind: str
    node: str | None
    text: str
    data: dict[str, Any]
    pool: NotRequired[Annotated[str, "whose journal it is in; only where the daemon has several pools"]]


class EventsView(TypedDict):
    """GET /v1/events: entries after a number, oldest first."""

    events: list[EventView]
    last: Annotated[int, "number to ask after next time"]


class ActionView(TypedDict):
    """One thing the daemon does or would do now."""

    kind: str
    node: str | None
    placement: Annotated[str | None, "where, for a launch"]
    reason: str
    token: Annotated[str | None, "idempotency token of a launch"]


class DeferredView(TypedDict):
    """One thing the daemon would like to do and does not do yet, with the reason for waiting."""

    kind: str
    node: str | None
    placement: str | None
    reason: str


class TargetSpecView(TypedDict):
    """One entry of the wanted target set."""

    id: str
    address: str
    phase: Annotated[str, "active or draining"]
    weight: int
    drain_deadline: float | None


class PoolPlanView(TypedDict):
    """The plan for one pool."""

    name: str
    actions: list[ActionView]
    deferred: list[DeferredView]
    notes: list[str]
    targets: list[TargetSpecView]


class StageSecondsView(TypedDict):
    """Seconds from a swap's beginning to each of its stages; null for one not reached yet."""

    detached: Annotated[float | None, "a load balancer acknowledged that the node gets no new requests"]
    drained: Annotated[float | None, "the node held no request any more; null for one that vanished"]
    replaced: Annotated[float | None, "the node that takes its place was ready"]
    gone: Annotated[float | None, "the node no longer existed"]


class PastSwapView(TypedDict):
    """One swap of the history, under way or ended."""

    outgoing: str
    incoming: Annotated[str | None, "what takes its place; null when spare capacity did, or nothing yet"]
    cause: Annotated[str, "notice, sick, boot or operator"]
    stage: str
    began_at: Annotated[float, "when its notice was seen or its drain began"]
    deadline: float | None
    seconds: StageSecondsView
    pool: NotRequired[Annotated[str, "only where the daemon has several"]]


class StageView(TypedDict):
    """One stage over all swaps of an answer that reached it."""

    stage: str
    swaps: int
    median_s: float
    p95_s: float
    longest_s: float


class HistoryView(TypedDict):
    """GET /v1/history: the newest swaps and starts, oldest first, and how long their parts took."""

    schema: Literal["history/1"]
    at: float
    swaps: list[PastSwapView]
    stages: list[StageView]
    starts: Annotated[list[PastStartView], "the newest ones of at most 64 a pool"]
    start_kinds: Annotated[list[StartKindView], "the same starts, summed up"]


class GamedayView(TypedDict):
    """`orchestrator gameday -o json`: one node drained on purpose, and whether the pool bore it."""

    schema: Literal["gameday/1"]
    pool: str
    node: str
    seed: Annotated[int, "draws the same node from the same pool again"]
    passed: bool
    breach: Annotated[str | None, "what the pool did not bear"]
    took_s: float
    swap: Annotated[PastSwapView | None, "the stages that the node reached; null when its drain never began"]


class PlanView(TypedDict):
    """GET /v1/plan: what the daemon would do now."""

    schema: Literal["plan/1"]
    pools: list[PoolPlanView]


class ExplainView(TypedDict):
    """GET /v1/explain: a policy, node, offering or key in sentences."""

    schema: Literal["explain/1"]
    subject: str
    sentences: list[str]


class GpuView(TypedDict):
    """One GPU as its driver shows it; null for what it does not tell."""

    index: int
    name: str
    state: Annotated[str, "empty for one that answers, else what the driver says instead"]
    utilisation_percent: float | None
    memory_used_mib: float | None
    memory_total_mib: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    sm_clock_mhz: float | None
    throttled: Annotated[str, "what slows it down that nobody chose; empty where nothing does"]
    ecc_corrected: Annotated[float | None, "corrected memory errors since the driver was loaded"]
    ecc_uncorrected: Annotated[float | None, "uncorrected memory errors since the driver was loaded"]
    retired_pages: float | None
    remapped_rows: float | None
    waits_for_reset: Annotated[bool, "pages or rows of memory are replaced at the next reset"]


class XidView(TypedDict):
    """One error that the GPU driver wrote to the kernel log."""

    pci: str
    code: int
    text: Annotated[str, "of the last time"]
    count: Annotated[int, "how often it came"]
    fatal: Annotated[bool, "the node is replaced because of it"]
    asks: Annotated[str, "nothing, person, restart, reset or replace, by NVIDIA's catalogue"]
    says: str


class GpusView(TypedDict):
    """What is known of a node's GPUs, by its agent or by a DCGM exporter, and how fast it is."""

    source: Annotated[str, "agent or dcgm; empty where nobody read them"]
    read_s: Annotated[float | None, "seconds since they were read"]
    gpus: list[GpuView]
    xids: list[XidView]
    asks: Annotated[str, "what they ask for: nothing, person, restart, reset or replace"]
    why: str
    throttled_s: Annotated[float, "seconds for which it has been throttled; 0: it is not"]
    throttle: Annotated[str, "what slowed it down last"]
    speed: Annotated[float | None, "share of its peers' speed; null without work, or without peers"]
    speed_by: Annotated[str, "tokens or clocks"]
    slow_s: Annotated[float, "seconds for which it has been slow; 0: it is not"]
    error: Annotated[str, "why the exporter cannot be read"]


class BootCheckView(TypedDict):
    """One thing that a node looked at before it started its engine."""

    name: str
    ok: bool
    text: Annotated[str, "what it saw, and what to do"]


class BootView(TypedDict):
    """How far a node came with starting its engine, by its own word."""

    stage: Annotated[str, "disks, checks, secrets, weights, start or failed; empty for an unknown one"]
    ok: bool
    detail: str
    checks: list[BootCheckView]
    restarts: Annotated[int, "starts of the engine that ended early, one after another"]


class AgentView(TypedDict):
    """What a node's agent last reported."""

    heard_s: Annotated[float, "seconds since that report"]
    life_cycle: Annotated[str, "spot or on-demand, as the node's own metadata has it"]
    gpus: list[GpuView]
    xids: list[XidView]
    errors: Annotated[list[str], "what the agent cannot read on its node"]
    boot: Annotated[BootView | None, "null where it does not say"]


class NodeStory(TypedDict):
    """GET /v1/nodes/{id}: one node and everything that happened to it. `node` is null once forgotten."""

    schema: Literal["node/1"]
    node: NodeView | None
    agent: Annotated[AgentView | None, "null when no agent of this node was heard"]
    gpus: Annotated[GpusView | None, "null where nothing reports them"]
    failed_boot: Annotated[FailedBootView | None, "null unless it never became ready and is remembered"]
    start: Annotated[PastStartView | None, "its newest start; null unless it was measured and is remembered"]
    events: list[EventView]
    sentences: list[str]


class DoneView(TypedDict):
    """The answer to an operator's command: what happens now, as one sentence."""

    text: str


class ErrorView(TypedDict):
    """Every refusal of the API: what is wrong and what to do, as one sentence."""

    error: str


class ProblemView(TypedDict):
    """One fault or doubt in a configuration file."""

    file: str
    line: Annotated[int, "from 1; 0 where the whole file is meant"]
    key: str
    text: Annotated[str, "what is wrong and what to do"]


class ChangeView(TypedDict):
    """One key whose value differs from the one in force."""

    key: str
    line: Annotated[int, "in the new file; of the table around it where the key is not written"]
    before: Annotated[str, "as a file would have it"]
    after: str
    effect: Annotated[str, "now, gateway (once that is reloaded) or restart (refused while the daemon runs)"]


class ReloadView(TypedDict):
    """POST /v1/reload: a configuration judged, and what became of it."""

    schema: Literal["reload/1"]
    outcome: Annotated[
        Literal["applied", "unchanged", "rejected", "checked"], "checked: it would be applied, but was not"
    ]
    file: str
    changes: list[ChangeView]
    problems: Annotated[list[ProblemView], "why it was rejected; the one before stays in force"]
    warnings: list[ProblemView]
    size: Annotated[str | None, "nodes before and after and what they cost; null where the size stays"]
    plan: Annotated[PoolPlanView | None, "what the next turn does under it; null where it was rejected"]
    plans: NotRequired[Annotated[list[PoolPlanView], "the same, where it is about several pools"]]
    text: Annotated[str, "the same in one sentence"]


class ScrapeView(TypedDict):
    """One group of targets of `/v1/sd`, as Prometheus' HTTP service discovery has it."""

    targets: Annotated[list[str], "host:port"]
    labels: Annotated[dict[str, str], "pool, node, market, zone, instance_type"]
