"""Every metric of the daemon: name, help, labels. No other file of the daemon names one.

Labels are bounded: words of the code, and what the configuration and the catalogue name. Series of nodes, of
targets and of placements go when what they describe goes: `orchestrator.api.gauges` sets them at every read.
"""

from __future__ import annotations

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
_STAGES = (0.01, 0.05, 0.1, 0.25, 0.5, *_LONG)
_LEADS = (0.0, 5.0, 15.0, 30.0, 60.0, 90.0, 105.0, 115.0, 120.0, 300.0, 3600.0)


_OF_POOLS: list[Gauge | Counter | Histogram] = []
"""Those that are labelled by pool."""

_Made = TypeVar("_Made", Gauge, Counter, Histogram)


def _noted(metric: _Made, labels: tuple[str, ...]) -> _Made:
    if "pool" in labels:
        _OF_POOLS.append(metric)
    return metric


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return _noted(Gauge(f"orchestrator_{name}", text, labels, registry=REGISTRY), labels)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return _noted(Counter(f"orchestrator_{name}", text, labels, registry=REGISTRY), labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return _noted(Histogram(f"orchestrator_{name}", text, labels, buckets=buckets, registry=REGISTRY), labels)


# -- the pool ---------------------------------------------------------------------------------------------

# Capacity is counted in serving units, which are nodes unless the pool's `units` say otherwise.
WANTED = _gauge("pool_wanted_nodes", "Replicas that the configuration asks for, in units.", "pool")
READY = _gauge("pool_ready_nodes", "Units that count as ready, per market.", "pool", "market")
COMING = _gauge("pool_coming_nodes", "Units starting or being launched, per market.", "pool", "market")
SERVING = _gauge("pool_serving_nodes", "Units that clients can reach now.", "pool")
NOTICED = _gauge("pool_noticed_nodes", "Nodes under a believed notice.", "pool")
UNHEALTHY = _gauge("pool_unhealthy_nodes", "Booted nodes whose engine does not answer.", "pool")
FLOOR = _gauge("pool_on_demand_floor_nodes", "On-demand units that the mix always holds.", "pool")
MIN_SERVING = _gauge("pool_min_serving_nodes", "Units below which noticed nodes drain late.", "pool")
NODES = _gauge("pool_nodes", "Nodes of the pool, per market and phase.", "pool", "market", "phase")
STANDBYS = _gauge("pool_standby_nodes", "Warm units kept to take over, by kind.", "pool", "kind")
STATE = _gauge("pool_state", "1 for the state that the pool is in, 0 for the others.", "pool", "state")
PAUSED = _gauge("pool_paused", "1 while an operator's pause holds.", "pool")
DEFERRED = _gauge("pool_deferred_actions", "Actions that the last turn put off, by kind.", "pool", "kind")
OPEN_CALLS = _gauge("pool_open_calls", "Calls whose effect is not seen yet, by kind.", "pool", "kind")
OLDEST_CALL = _gauge(
    "pool_oldest_open_call_seconds", "Age of the oldest call whose effect is not seen yet.", "pool", "kind"
)
UNKNOWN_INSTANCES = _gauge(
    "pool_unknown_instances",
    "Machines that live with the pool's tag and that no daemon of the pool launched; they are left alone.",
    "pool",
)
NODE = _gauge("node_info", "1 for every node.", "pool", "node", "market", "zone", "instance_type")

# -- the market and the money -----------------------------------------------------------------------------

OFFERINGS = _gauge(
    "market_offerings",
    "Offerings per market: open, blocked (by a refusal, a quota, failed boots), unavailable (not sold now).",
    "pool",
    "market",
    "state",
)
PRICE = _gauge(
    "market_price_usd_per_hour", "Price of an offering.", "pool", "market", "zone", "instance_type"
)
PRICES_AGE = _gauge(
    "prices_age_seconds",
    "Age of the oldest price in a part of the prices, over restarts; +Inf where one was never known.",
    "pool",
    "part",
)
MARKET_PAUSED = _gauge(
    "pool_market_paused",
    "1 for a market of a region in which nothing is launched but a try now and then: launches are not "
    "allowed there or not possible, or a fault ends machines before they start.",
    "pool",
    "region",
    "market",
)
REFUSALS = _gauge("pool_remembered_refusals", "Placements whose refusal has not decayed yet.", "pool")
PREEMPTIONS = _counter("preemptions_total", "Spot nodes lost, by whether a notice came.", "pool", "noticed")

COST_RATE = _gauge(
    "pool_cost_usd_per_hour", "Price of all billing nodes now; NaN while one is not known.", "pool"
)
ON_DEMAND_RATE = _gauge(
    "pool_on_demand_cost_usd_per_hour", "The wanted units, all on-demand; NaN while not known.", "pool"
)
SPENT = _gauge("pool_spent_usd", "Money spent since the journal began.", "pool")
SAVED = _gauge("pool_saved_usd", "Money saved against on-demand since the journal began.", "pool")
UTILISATION = _gauge(
    "pool_utilisation_ratio",
    "Tokens of the last seven days over what the ready units could have served; NaN while no rate is known.",
    "pool",
)
BREAK_EVEN = _gauge(
    "pool_break_even_utilisation_ratio",
    "Utilisation above which the last seven days cost less than at the API, people's work included.",
    "pool",
)
MTOK = _gauge(
    "pool_usd_per_million_tokens",
    "What a million tokens cost in the last seven days, with or without people's work.",
    "pool",
    "people",
)
API_MTOK = _gauge(
    "pool_api_usd_per_million_tokens",
    "What the API that the pool is held against asks for a million of the same tokens.",
    "pool",
)
MONTH_SPENT = _gauge("month_spent_usd", "Machines and providers since the month began (UTC); NaN: unknown.")
MONTH_EXPECTED = _gauge(
    "month_expected_usd", "What they will have cost by its end, at the pace of the last seven days."
)
MONTH_BUDGET = _gauge("month_budget_usd", "cost.usd_per_month; NaN where it is not set.")
SPEND_CAP = _gauge("pool_spend_cap_usd_per_hour", "limits.spend_per_hour, where it is set.", "pool")
SPEND_CAP_REACHED = _gauge(
    "pool_spend_cap_reached", "1 while the spend cap leaves no room for the cheapest offering.", "pool"
)
TOKENS = _counter(
    "pool_generated_tokens_total",
    "Tokens that the engines of the pool generated, by their own count.",
    "pool",
)

# -- notices, drains, swaps -------------------------------------------------------------------------------

NOTICES = _counter("notices_total", "Notices taken up, by kind and source.", "pool", "kind", "source")
NOTICES_UNKNOWN = _counter(
    "notices_unknown_node_total", "Notices for nodes that are not known (yet).", "pool"
)
NOTICE_LEAD = _histogram(
    "notice_lead_seconds", "From the arrival of a notice to its deadline.", _LEADS, "pool", "source"
)
NOTICE_SOURCE_AGE = _gauge(
    "notice_source_age_seconds",
    "For how long a source may hold a notice that was not heard or journalled; near 0 when all is well.",
    "pool",
    "source",
)
NOTICE_TO_DETACHED = _histogram(
    "notice_to_detached_seconds",
    "From the arrival of a notice to the balancer's acknowledgement that the node gets no new requests; "
    "drains that were late by choice are not counted.",
    _FAST,
    "pool",
)
LATE_DRAINS = _counter("late_drains_total", "Noticed nodes that kept serving until later.", "pool")
DRAIN_SECONDS = _histogram("drain_seconds", "From detachment to no request in flight.", _LONG, "pool")
DRAINS_CUT = _counter("drains_cut_total", "Nodes that were gone with requests still in flight.", "pool")
SWAP_SECONDS = _histogram(
    "swap_seconds",
    "From the notice, or the decision, to each stage of a swap: detached, drained, replaced.",
    _STAGES,
    "pool",
    "stage",
)
SWAP_FAILURES = _counter(
    "swap_failures_total", "Replacements that did not come: refused, lost, or never ready.", "pool"
)
OPEN_SWAPS = _gauge("pool_open_swaps", "Swaps whose replacement is not ready, by stage.", "pool", "stage")
OVERDUE_SWAPS = _gauge(
    "pool_overdue_swaps", "Open swaps with a replacement on its way whose outgoing node is gone.", "pool"
)
BOOT_SECONDS = _histogram(
    "boot_seconds", "From launch to a ready engine, per market.", _LONG, "pool", "market"
)
START_PART_SECONDS = _histogram(
    "start_part_seconds",
    "What measured starts consisted of, by part; a part that nobody measured is not observed.",
    _LONG,
    "pool",
    "part",
)
BOOTS_FAILED = _counter(
    "boots_failed_total", "Machines that were given up, or ended, before they were ready.", "pool", "market"
)

# -- adapters ---------------------------------------------------------------------------------------------

ADAPTER_NODES = _gauge("adapter_nodes", "Nodes that get requests for an adapter.", "pool", "adapter")
ADAPTER_MISSING = _gauge(
    "adapter_missing_nodes",
    "Nodes that serve, should hold an adapter and cannot be given it, or were not yet.",
    "pool",
    "adapter",
)
ADAPTER_CALLS = _counter(
    "adapter_calls_total",
    "Calls on engines to load or unload adapters, by outcome.",
    "pool",
    "call",
    "outcome",
)
ADAPTERS_LOST = _counter(
    "adapters_lost_total", "Adapters that an engine held and was then seen not to hold.", "pool"
)

# -- balancers --------------------------------------------------------------------------------------------

TARGETS = _gauge("balancer_targets", "Targets that a balancer shows, by state.", "pool", "balancer", "state")
TARGETS_DIFFER = _gauge(
    "balancer_differing_targets",
    "Nodes that a balancer sends requests to and should not, or the other way round.",
    "pool",
    "balancer",
)

# -- calls on the world -----------------------------------------------------------------------------------

CALLS = _counter(
    "calls_total",
    "Calls on the world: on instances, offerings and each balancer, by how they ended.",
    "pool",
    "port",
    "operation",
    "outcome",
)
CALL_SECONDS = _histogram(
    "call_seconds", "Duration of calls on the world, failed ones too.", _FAST, "pool", "port", "operation"
)
AWS_CALLS = _counter(
    "aws_calls_total", "Calls of the AWS API, by how they ended.", "region", "operation", "outcome"
)
AWS_CALL_SECONDS = _histogram("aws_call_seconds", "Duration of calls of the AWS API.", _FAST, "operation")
SKYPILOT_UP = _gauge("skypilot_helper_up", "1 while SkyPilot's helper runs.", "helper")
SKYPILOT_ENDS = _counter(
    "skypilot_helper_ends_total", "Ends of SkyPilot's helper that the daemon did not ask for.", "helper"
)
SKYPILOT_MEMORY = _gauge("skypilot_helper_memory_bytes", "Memory of SkyPilot's helper.", "helper")
OBSERVATION_AGE = _gauge(
    "observation_age_seconds", "Age of the last good look at a part of the world.", "pool", "kind", "part"
)

# -- engines and GPUs -------------------------------------------------------------------------------------

ENGINE_READY = _gauge(
    "engine_ready", "1 for an engine that is loaded and answered its last probe.", "pool", "node"
)
ENGINE_RUNNING = _gauge("engine_running_requests", "Requests that an engine works on.", "pool", "node")
ENGINE_WAITING = _gauge("engine_waiting_requests", "Requests that wait in an engine's queue.", "pool", "node")

ENGINE_RATE = _gauge(
    "engine_tokens_per_second",
    "Tokens a second of an engine lately, while it had work; 0 without.",
    "pool",
    "node",
)

_GPU = ("pool", "node", "gpu")
GPU_BUSY = _gauge("gpu_utilisation_ratio", "Share of time that a GPU was busy, by its node's word.", *_GPU)
GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "Memory of a GPU in use, by its node's word.", *_GPU)
GPU_MEMORY = _gauge("gpu_memory_total_bytes", "Memory of a GPU, by its node's word.", *_GPU)
GPU_TEMPERATURE = _gauge("gpu_temperature_celsius", "Temperature of a GPU, by its node's word.", *_GPU)
GPU_POWER = _gauge("gpu_power_watts", "Power that a GPU draws.", *_GPU)
GPU_POWER_LIMIT = _gauge("gpu_power_limit_watts", "Power that a GPU may draw.", *_GPU)
GPU_CLOCK = _gauge("gpu_sm_clock_hertz", "Clock of a GPU's multiprocessors.", *_GPU)
GPU_CLOCK_MOST = _gauge("gpu_sm_clock_max_hertz", "Highest clock of a GPU's multiprocessors.", *_GPU)
GPU_THROTTLED = _gauge(
    "gpu_throttled",
    "1 while a GPU's clock is held back for this reason. power-cap is a limit that was set; the others are "
    "heat, the hardware and the power supply.",
    *_GPU,
    "reason",
)
GPU_ECC = _gauge(
    "gpu_uncorrected_ecc_errors", "Uncorrected memory errors of a GPU since its driver was loaded.", *_GPU
)
GPU_ECC_CORRECTED = _gauge(
    "gpu_corrected_ecc_errors", "Corrected memory errors of a GPU since its driver was loaded.", *_GPU
)
GPU_PAGES = _gauge(
    "gpu_retired_pages", "Pages of a GPU's memory that were retired for double-bit errors.", *_GPU
)
GPU_ROWS = _gauge(
    "gpu_remapped_rows", "Rows of a GPU's memory that were replaced for uncorrected errors.", *_GPU
)
GPU_ROWS_WAITING = _gauge(
    "gpu_rows_waiting", "1 while rows of a GPU's memory are replaced at its next reset.", *_GPU
)
GPU_XIDS = _gauge(
    "gpu_xid_errors",
    "Errors with this Xid code in the last report of a node; the driver writes them to the kernel log.",
    "pool",
    "node",
    "code",
)
GPUS_ASK = _gauge(
    "node_gpus_ask",
    "1 for what the GPUs of a node ask for, by NVIDIA's catalogue: nothing, person, restart, reset, replace.",
    "pool",
    "node",
    "remedy",
)
GPUS_UNREAD = _gauge(
    "pool_gpus_unread", "Nodes whose GPUs cannot be read, by their agent or by an exporter.", "pool"
)
NODE_THROTTLED = _gauge(
    "node_throttled_seconds", "For how long GPUs of a node have been throttled; 0: none is.", "pool", "node"
)
NODE_SPEED = _gauge(
    "node_speed_ratio",
    "A node's speed as a share of its peers', by tokens a second or by clocks, whichever is less.",
    "pool",
    "node",
    "by",
)
NODE_SLOW = _gauge(
    "node_slow_seconds", "For how long a node has been slower than its peers; 0: it is not.", "pool", "node"
)
OF_GPUS = (
    *(GPU_BUSY, GPU_MEMORY_USED, GPU_MEMORY, GPU_TEMPERATURE, GPU_POWER, GPU_POWER_LIMIT, GPU_CLOCK),
    *(GPU_CLOCK_MOST, GPU_THROTTLED, GPU_ECC, GPU_ECC_CORRECTED, GPU_PAGES, GPU_ROWS, GPU_ROWS_WAITING),
    *(GPU_XIDS, GPUS_ASK, NODE_THROTTLED, NODE_SPEED, NODE_SLOW),
)
"""Gauges of what comes and goes with nodes and their GPUs."""
AGENTS_HEARD = _gauge("pool_agents_heard", "Nodes whose agent reported within the last minute.", "pool")
AGENT_REFUSALS = _gauge(
    "pool_agent_reports_refused", "Node reports refused since the start, by why.", "pool", "why"
)
NODE_KEYS = _gauge(
    "pool_node_key_requests",
    "Requests of nodes for their keys since the start: given or refused.",
    "pool",
    "outcome",
)
CONDEMNED = _gauge("pool_condemned_nodes", "Nodes whose GPUs ask for a reset or for another machine.", "pool")
NODE_REPORT_AGE = _gauge(
    "node_report_age_seconds", "Age of the last report of a node's own agent.", "pool", "node"
)

# -- the loop ---------------------------------------------------------------------------------------------

ACTIONS = _counter("actions_total", "Actions planned, by kind.", "pool", "kind")
ALARMS = _gauge("alarm", "1 while the alarm of this name is raised.", "pool", "name")
TURN_SECONDS = _histogram("turn_seconds", "Duration of one turn of the loop, by part.", _FAST, "pool", "part")
TURNS = _counter("turns_total", "Turns of the loop.", "pool")
POOL_FAILURES = _gauge(
    "pool_failures", "Failures since the daemon began after which a pool was begun again.", "pool"
)
TURNS_UNRECORDED = _counter(
    "turns_unrecorded_total", "Turns that were to be recorded while too many waited to be written.", "pool"
)
LAST_TURN = _gauge("last_turn_timestamp_seconds", "When the last turn was completed.", "pool")
LOOP_LAG = _histogram("loop_lag_seconds", "How much later than its tick a quiet turn began.", _FAST, "pool")
INBOX_WAITING = _gauge("inbox_waiting_events", "Events that wait for the next turn.", "pool")
INBOX_DROPPED = _gauge("inbox_dropped_events", "Events dropped because the inbox was full.", "pool")
LEADING = _gauge("leading", "1 while this daemon holds the lease.", "pool")
DATABASE_SILENT = _gauge(
    "database_silent_seconds",
    "Time since the database of a pair answered last, once the lease ran out for it; 0 otherwise.",
    "pool",
)
EPOCH = _gauge("epoch", "The epoch under which this daemon acts.", "pool")

# -- the journal and the process --------------------------------------------------------------------------

JOURNAL_OK = _gauge("journal_ok", "1 while the journal accepts writes.")
JOURNAL_SECONDS = _histogram("journal_append_seconds", "Duration of a durable append.", _FAST)
JOURNAL_FAILURES = _counter("journal_failures_total", "Appends that failed.")
JOURNAL_UNWRITTEN = _gauge(
    "journal_unwritten_events", "Events that wait for the journal to accept writes.", "pool"
)
JOURNAL_BYTES = _gauge("journal_size_bytes", "Size of the journal, with what SQLite keeps beside it.")
STATE_FREE = _gauge("state_dir_free_bytes", "Free space where daemon.state_dir is.")
CLOCK_STEP = _gauge(
    "clock_step_seconds",
    "By how much the system's clock was set since the daemon began; the daemon goes on by the old one.",
)
CONFIG_OK = _gauge(
    "config_last_reload_successful", "1 unless the newest configuration that was offered was rejected."
)
CONFIG_LOADED = _gauge("config_loaded_timestamp_seconds", "When the configuration in force was taken up.")
LOG_DROPPED = _gauge("log_dropped_lines", "Log lines dropped because standard error was not read.")
BUILD = _gauge("build_info", "1, with the version of the daemon.", "version")
ProcessCollector(registry=REGISTRY)


def forget(pool: str) -> None:
    """Drop every series of a pool that is no more."""
    for metric in _OF_POOLS:
        metric.remove_by_labels({"pool": pool})
