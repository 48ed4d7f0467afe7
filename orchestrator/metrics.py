"""Every metric of the daemon: name, help, labels. No other file of the daemon names one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"orchestrator_{name}", text, labels, registry=REGISTRY)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"orchestrator_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"orchestrator_{name}", text, labels, buckets=buckets, registry=REGISTRY)


WANTED = _gauge("pool_wanted_nodes", "Replicas that the configuration asks for.", "pool")
READY = _gauge("pool_ready_nodes", "Nodes that count as ready, per market.", "pool", "market")
COMING = _gauge("pool_coming_nodes", "Nodes starting or being launched, per market.", "pool", "market")
SERVING = _gauge("pool_serving_nodes", "Nodes that balancers send new requests to.", "pool")
DOOMED = _gauge("pool_doomed_nodes", "Nodes under a believed notice.", "pool")
FLOOR = _gauge("pool_on_demand_floor_nodes", "On-demand nodes that the mix always holds.", "pool")
COST_RATE = _gauge("pool_cost_usd_per_hour", "Price of all billing nodes now.", "pool")
ON_DEMAND_RATE = _gauge("pool_on_demand_cost_usd_per_hour", "The wanted nodes, all on-demand.", "pool")
SPENT = _gauge("pool_spent_usd", "Money spent since the journal began.", "pool")
PAUSED = _gauge("pool_paused", "1 while an operator's pause holds.", "pool")
REFUSALS = _gauge("pool_remembered_refusals", "Placements whose refusal has not decayed yet.", "pool")

AGENTS_HEARD = _gauge("pool_agents_heard", "Nodes whose agent reported within the last minute.", "pool")
AGENT_REFUSALS = _gauge(
    "pool_agent_reports_refused", "Node reports refused since the start, by why.", "pool", "why"
)
CONDEMNED = _gauge("pool_condemned_nodes", "Nodes whose GPUs show an error that they do not survive.", "pool")

NOTICES = _counter("notices_total", "Notices taken up, by kind and source.", "pool", "kind", "source")
NOTICES_UNKNOWN = _counter(
    "notices_unknown_node_total", "Notices for nodes that are not known (yet).", "pool"
)
PREEMPTIONS = _counter("preemptions_total", "Spot nodes lost, by whether a notice came.", "pool", "noticed")
NOTICE_TO_DETACHED = _histogram(
    "notice_to_detached_seconds",
    "From the arrival of a notice to the balancer's acknowledgement that the node gets no new requests; "
    "drains that were late by choice are not counted.",
    _FAST,
    "pool",
)
LATE_DRAINS = _counter("late_drains_total", "Doomed nodes that kept serving until later.", "pool")
TURNS_UNRECORDED = _counter(
    "turns_unrecorded_total", "Turns that were to be recorded while too many waited to be written.", "pool"
)
SWAP_SECONDS = _histogram("swap_seconds", "From notice to a ready replacement.", _LONG, "pool")
DRAIN_SECONDS = _histogram("drain_seconds", "From detachment to no request in flight.", _LONG, "pool")
BOOT_SECONDS = _histogram(
    "boot_seconds", "From launch to a ready engine, per market.", _LONG, "pool", "market"
)

ACTIONS = _counter("actions_total", "Actions planned, by kind.", "pool", "kind")
CALLS = _counter("calls_total", "Calls on the world, by kind and outcome.", "pool", "kind", "outcome")
CALL_SECONDS = _histogram("call_seconds", "Duration of calls on the world.", _FAST, "pool", "kind")
ALARMS = _gauge("alarm", "1 while the alarm of this name is raised.", "pool", "name")

TURN_SECONDS = _histogram("turn_seconds", "Duration of one turn of the loop, by part.", _FAST, "part")
TURNS = _counter("turns_total", "Turns of the loop.")
LAST_TURN = _gauge("last_turn_timestamp_seconds", "When the last turn was completed.")
OBSERVATION_SECONDS = _histogram("observation_seconds", "Duration of good looks at a port.", _FAST, "part")
OBSERVATION_ERRORS = _counter("observation_errors_total", "Looks at a port that failed.", "part")
INSTANCES_AGE = _gauge("instances_age_seconds", "Age of the last complete list of instances.", "pool")
INBOX_DROPPED = _gauge("inbox_dropped_events", "Events dropped because the inbox was full.")
JOURNAL_OK = _gauge("journal_ok", "1 while the journal accepts writes.")
JOURNAL_SECONDS = _histogram("journal_append_seconds", "Duration of a durable append.", _FAST)
LEADING = _gauge("leading", "1 while this daemon holds the lease.")
EPOCH = _gauge("epoch", "The epoch under which this daemon acts.")
