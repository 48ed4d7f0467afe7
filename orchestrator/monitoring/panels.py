"""The panels of the Grafana dashboard, in rows.

Every query is a PromQL expression over the metrics of daemon, gateway and engines. A test puts each of them
to a live Prometheus and wants an answer.
"""

from __future__ import annotations

from typing import Final

from orchestrator.monitoring.client_panels import CLIENTS, OBJECTIVES
from orchestrator.monitoring.money_panels import MONEY
from orchestrator.monitoring.panel import Panel, quantile

_POOL = (
    Panel(
        "Ready share",
        "Ready nodes as a share of the wanted ones.",
        (
            (
                "sum(orchestrator_pool_ready_nodes{POOL}) / sum(orchestrator_pool_wanted_nodes{POOL})",
                "ready",
            ),
        ),
        "percentunit",
        stat=True,
    ),
    Panel(
        "State",
        "The state of each pool, as `orchestrator status` names it.",
        (("orchestrator_pool_state{POOL} == 1", "{{pool}}: {{state}}"),),
        stat=True,
    ),
    Panel(
        "Nodes",
        "Ready nodes per market, what is coming, and what is wanted.",
        (
            ("sum by (market) (orchestrator_pool_ready_nodes{POOL})", "{{market}}, ready"),
            ("sum by (market) (orchestrator_pool_coming_nodes{POOL})", "{{market}}, coming"),
            ("sum(orchestrator_pool_wanted_nodes{POOL})", "wanted"),
            ("sum(orchestrator_pool_on_demand_floor_nodes{POOL})", "on-demand floor"),
        ),
    ),
    Panel(
        "Phases",
        "Nodes by phase.",
        (("sum by (phase) (orchestrator_pool_nodes{POOL})", "{{phase}}"),),
        stacked=True,
    ),
    Panel(
        "Targets",
        "Targets by state, as each balancer shows them.",
        (
            (
                "sum by (balancer, state) (orchestrator_balancer_targets{POOL})",
                "{{balancer}}: {{state}}",
            ),
        ),
    ),
    Panel(
        "Out of order",
        "Each of these should be 0.",
        (
            ("sum(orchestrator_pool_unhealthy_nodes{POOL})", "unhealthy nodes"),
            ("sum(orchestrator_balancer_differing_targets{POOL})", "differing targets"),
            ("sum(orchestrator_pool_unknown_instances{POOL})", "unknown instances"),
            ("sum(orchestrator_pool_overdue_swaps{POOL})", "overdue swaps"),
        ),
    ),
)
_MARKET = (
    Panel(
        "Prices",
        "Price of each offering.",
        (("orchestrator_market_price_usd_per_hour{POOL}", "{{market}} {{instance_type}} {{zone}}"),),
        "currencyUSD",
    ),
    Panel(
        "Offerings",
        "Open: may be tried. Blocked: refused, over quota, or boots failed. Unavailable: not sold now.",
        (("sum by (market, state) (orchestrator_market_offerings{POOL})", "{{market}}, {{state}}"),),
        stacked=True,
    ),
    Panel(
        "Preemptions an hour",
        "Spot nodes lost, by whether a notice came before.",
        (
            (
                "sum by (noticed) (rate(orchestrator_preemptions_total{POOL}[1h])) * 3600",
                "noticed: {{noticed}}",
            ),
        ),
    ),
)
_NOTICES = (
    Panel(
        "Notices an hour",
        "By kind and source. Several sources may report the same reclaim.",
        (
            (
                "sum by (kind, source) (rate(orchestrator_notices_total{POOL}[1h])) * 3600",
                "{{kind}}, {{source}}",
            ),
        ),
    ),
    Panel(
        "From notice to detached",
        "From the arrival of a notice to the balancer's word that the node gets no new request.",
        (
            (quantile(0.5, "orchestrator_notice_to_detached_seconds_bucket{POOL}"), "median"),
            (quantile(0.99, "orchestrator_notice_to_detached_seconds_bucket{POOL}"), "p99"),
        ),
        "s",
    ),
    Panel(
        "Swap, stage by stage (p90)",
        "From the notice to detached, drained and replaced.",
        ((quantile(0.9, "orchestrator_swap_seconds_bucket{POOL}", "stage"), "{{stage}}"),),
        "s",
    ),
    Panel(
        "Starts, part by part (median)",
        "What starts of nodes consisted of: docs/how-to/fast-starts.md says what shortens each part.",
        ((quantile(0.5, "orchestrator_start_part_seconds_bucket{POOL}", "part"), "{{part}}"),),
        "s",
    ),
    Panel(
        "Time left at arrival (median)",
        "From the arrival of a notice to its deadline, by source.",
        ((quantile(0.5, "orchestrator_notice_lead_seconds_bucket{POOL}", "source"), "{{source}}"),),
        "s",
    ),
    Panel(
        "Sources",
        "For how long each source may hold a notice that was not heard; near 0 when all is well.",
        (("orchestrator_notice_source_age_seconds", "{{source}}"),),
        "s",
    ),
    Panel(
        "Went wrong, an hour",
        "Replacements that did not come, nodes gone with requests in flight, drains late by choice.",
        (
            ("sum(rate(orchestrator_swap_failures_total{POOL}[1h])) * 3600", "failed replacements"),
            ("sum(rate(orchestrator_drains_cut_total{POOL}[1h])) * 3600", "drains cut"),
            ("sum(rate(orchestrator_late_drains_total{POOL}[1h])) * 3600", "late drains"),
        ),
    ),
)
_GATEWAY = (
    Panel(
        "Requests",
        "Client requests by how they ended.",
        (("sum by (outcome) (rate(orchestrator_gateway_requests_total[$__rate_interval]))", "{{outcome}}"),),
        "reqps",
        stacked=True,
    ),
    Panel(
        "First byte",
        "From a request's arrival to its first byte.",
        (
            (quantile(0.5, "orchestrator_gateway_first_byte_seconds_bucket"), "median"),
            (quantile(0.99, "orchestrator_gateway_first_byte_seconds_bucket"), "p99"),
        ),
        "s",
    ),
    Panel(
        "In flight and waiting",
        "Requests being served or waiting, and those that wait for a target.",
        (
            ("sum(orchestrator_gateway_requests_active)", "active"),
            ("sum(orchestrator_gateway_queue_depth)", "waiting"),
        ),
    ),
    Panel(
        "Requests in flight by node",
        "How evenly the load is spread.",
        (("sum by (target) (orchestrator_gateway_target_in_flight)", "{{target}}"),),
    ),
)
_ROUTES = (
    Panel(
        "Answers by route",
        "Requests that were answered, by route and the backend that answered.",
        (
            (
                'sum by (route, backend) (rate(orchestrator_gateway_routed_total{result="answered"}'
                "[$__rate_interval]))",
                "{{route}}: {{backend}}",
            ),
        ),
        "reqps",
        stacked=True,
    ),
    Panel(
        "Standing in",
        "1 while a provider gets requests of a route in the place of backends before it.",
        (("max by (route, provider) (orchestrator_gateway_route_stands_in)", "{{route}}: {{provider}}"),),
    ),
    Panel(
        "Routes without an answer",
        "Routes of which no backend is known to answer; should be 0.",
        (("count(max by (route) (orchestrator_gateway_route_servable) == 0) or vector(0)", "routes"),),
        stat=True,
    ),
    Panel(
        "Spent at providers today",
        "US dollars booked this UTC day by all gateways, beside what is held and the cap.",
        (
            ("max by (provider) (orchestrator_gateway_provider_spent_today_dollars)", "{{provider}}"),
            ("max by (provider) (orchestrator_gateway_provider_held_dollars)", "{{provider}}, held"),
            ("max by (provider) (orchestrator_gateway_provider_cap_dollars)", "{{provider}}, cap"),
        ),
        "currencyUSD",
    ),
    Panel(
        "Dollars an hour at providers",
        "What routes cost at providers, at the pace of now.",
        (
            (
                "sum by (route, provider) (rate(orchestrator_gateway_provider_dollars_total"
                "[$__rate_interval])) * 3600",
                "{{route}}: {{provider}}",
            ),
        ),
        "currencyUSD",
        stacked=True,
    ),
    Panel(
        "Requests at providers",
        "Requests that providers got, by how they ended.",
        (
            (
                "sum by (provider, outcome) (rate(orchestrator_gateway_provider_requests_total"
                "[$__rate_interval]))",
                "{{provider}}: {{outcome}}",
            ),
        ),
        "reqps",
        stacked=True,
    ),
)
_ENGINES = (
    Panel(
        "Queues",
        "Requests that engines work on, and that wait in them.",
        (
            ("sum(orchestrator_engine_running_requests{POOL})", "running"),
            ("sum(orchestrator_engine_waiting_requests{POOL})", "waiting"),
        ),
    ),
    Panel(
        "KV cache",
        "Share of each engine's KV cache that is in use.",
        (("vllm:kv_cache_usage_perc{POOL}", "{{node}}"),),
        "percentunit",
    ),
    Panel(
        "Tokens a second",
        "Prompt tokens read and tokens generated, by the engines' own count.",
        (
            ("sum(rate(vllm:generation_tokens_total{POOL}[$__rate_interval]))", "generated"),
            ("sum(rate(vllm:prompt_tokens_total{POOL}[$__rate_interval]))", "prompt"),
        ),
    ),
    Panel(
        "Time to first token",
        "As the engines measure it: without the gateway and its queue.",
        (
            (quantile(0.5, "vllm:time_to_first_token_seconds_bucket{POOL}"), "median"),
            (quantile(0.99, "vllm:time_to_first_token_seconds_bucket{POOL}"), "p99"),
        ),
        "s",
    ),
    Panel(
        "Between tokens",
        "As the engines measure it.",
        (
            (quantile(0.5, "vllm:inter_token_latency_seconds_bucket{POOL}"), "median"),
            (quantile(0.99, "vllm:inter_token_latency_seconds_bucket{POOL}"), "p99"),
        ),
        "s",
    ),
    Panel(
        "Boot (p90)",
        "From launch to a ready engine, per market.",
        ((quantile(0.9, "orchestrator_boot_seconds_bucket{POOL}", "market"), "{{market}}"),),
        "s",
    ),
)
_GPUS = (
    Panel(
        "Utilisation",
        "Share of time that each GPU was busy, by its node's word.",
        (("orchestrator_gpu_utilisation_ratio{POOL}", "{{node}} {{gpu}}"),),
        "percentunit",
    ),
    Panel(
        "Memory",
        "Share of each GPU's memory in use.",
        (
            (
                "orchestrator_gpu_memory_used_bytes{POOL} / orchestrator_gpu_memory_total_bytes{POOL}",
                "{{node}} {{gpu}}",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Temperature",
        "Of each GPU.",
        (("orchestrator_gpu_temperature_celsius{POOL}", "{{node}} {{gpu}}"),),
        "celsius",
    ),
    Panel(
        "Power",
        "Drawn by each GPU, and the most that the limits allow to one.",
        (
            ("orchestrator_gpu_power_watts{POOL}", "{{node}} {{gpu}}"),
            ("max by (pool) (orchestrator_gpu_power_limit_watts{POOL})", "limit"),
        ),
        "watt",
    ),
    Panel(
        "Clock",
        "Of each GPU's multiprocessors, and the highest that there is.",
        (
            ("orchestrator_gpu_sm_clock_hertz{POOL}", "{{node}} {{gpu}}"),
            ("max by (pool) (orchestrator_gpu_sm_clock_max_hertz{POOL})", "highest"),
        ),
        "hertz",
    ),
    Panel(
        "Throttled",
        "GPUs whose clocks are held back, by reason. A power cap was set by somebody; others are trouble.",
        (("sum by (reason) (orchestrator_gpu_throttled{POOL})", "{{reason}}"),),
        stacked=True,
    ),
    Panel(
        "Speed beside peers",
        "Of each node that has work, by tokens a second or by clocks; 100 % is the median of its kind.",
        (("orchestrator_node_speed_ratio{POOL}", "{{node}}, {{by}}"),),
        "percentunit",
    ),
    Panel(
        "Tokens a second by node",
        "As the daemon's looks at the engines see it.",
        (("orchestrator_engine_tokens_per_second{POOL}", "{{node}}"),),
    ),
    Panel(
        "Errors",
        "Xid errors in the last report of each node, and memory errors since the driver was loaded.",
        (
            ("sum by (node, code) (orchestrator_gpu_xid_errors{POOL})", "{{node}}: Xid {{code}}"),
            ("sum by (node) (orchestrator_gpu_uncorrected_ecc_errors{POOL})", "{{node}}: uncorrected"),
            ("sum by (node) (orchestrator_gpu_corrected_ecc_errors{POOL})", "{{node}}: corrected"),
        ),
    ),
    Panel(
        "What GPUs ask for",
        "Nodes by what their GPUs ask for, by NVIDIA's catalogue. Reset and replace replace the node.",
        (("sum by (remedy) (orchestrator_node_gpus_ask{POOL})", "{{remedy}}"),),
        stacked=True,
    ),
)
_DAEMON = (
    Panel(
        "Turns",
        "Seconds of each part of a turn (p99). Journal: waiting for the disk.",
        ((quantile(0.99, "orchestrator_turn_seconds_bucket", "part"), "{{part}}"),),
        "s",
    ),
    Panel(
        "Age of what is known",
        "Seconds since the last good look at each part of the world.",
        (("orchestrator_observation_age_seconds{POOL}", "{{part}}"),),
        "s",
    ),
    Panel(
        "Calls",
        "Calls on the world by how they ended.",
        (
            (
                "sum by (outcome) (rate(orchestrator_calls_total{POOL}[$__rate_interval]))",
                "{{outcome}}",
            ),
        ),
        "ops",
    ),
    Panel(
        "Duration of calls (p99)",
        "By port and operation.",
        (
            (
                quantile(0.99, "orchestrator_call_seconds_bucket{POOL}", "port, operation"),
                "{{port}} {{operation}}",
            ),
        ),
        "s",
    ),
    Panel(
        "Journal",
        "Seconds of a durable append (p99), and the size of the file.",
        (
            (quantile(0.99, "orchestrator_journal_append_seconds_bucket"), "append, s"),
            ("sum(orchestrator_journal_size_bytes) / 1024 / 1024", "size, MiB"),
        ),
    ),
    Panel(
        "Lag",
        "How much later than its tick a quiet turn began (p99).",
        ((quantile(0.99, "orchestrator_loop_lag_seconds_bucket"), "lag"),),
        "s",
    ),
    Panel(
        "Memory",
        "Resident memory of daemon and gateway.",
        (('process_resident_memory_bytes{job=~"orchestrator|orchestrator-gateway"}', "{{job}}"),),
        "bytes",
    ),
    Panel(
        "Processor",
        "Cores used by daemon and gateway.",
        (
            (
                'rate(process_cpu_seconds_total{job=~"orchestrator|orchestrator-gateway"}[$__rate_interval])',
                "{{job}}",
            ),
        ),
    ),
)

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Pool": _POOL,
    "Market": _MARKET,
    "Money": MONEY,
    "Notices and swaps": _NOTICES,
    "Gateway": (*_GATEWAY, *OBJECTIVES),
    "Keys and clients": CLIENTS,
    "Routes and providers": _ROUTES,
    "Engines": _ENGINES,
    "GPUs": _GPUS,
    "Daemon": _DAEMON,
}
