"""The shipped alerts: each fires when it should and not otherwise, and says what to do about it.

Every alert has a case: series with which it fires, and series close to them with which it does not.
`promtool test rules` plays them against the shipped rules. Annotations are left out there, since promtool
wants them rendered; they are checked here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.model import Market
from policies.remedies import remedy

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "orchestrator" / "monitoring"
RUNBOOKS = ROOT / "docs" / "runbooks"
RULES: dict[str, Any] = yaml.safe_load((SHIPPED / "rules.yaml").read_text(encoding="utf-8"))
RECORDS = [rule for group in RULES["groups"] for rule in group["rules"] if "record" in rule]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
}
needs_promtool = pytest.mark.debian("promtool", package="prometheus")

Series = dict[str, str]


@dataclass(frozen=True)
class Case:
    """Series in promtool's notation, one sample each `every`; `labels`: the alert's without its severity."""

    fires: Series
    not_with: Series
    labels: dict[str, str] = field(default_factory=dict)
    after: str = "10m"
    """When it must have fired, and when it must not with the other series."""
    every: str = "15s"


POOL = {"pool": "a"}


def always(value: float) -> str:
    """The same value for four hours."""
    return f"{value:g}x960"


def rising(step: float, start: float = 0) -> str:
    """A counter that rises by `step` every 15 s."""
    return f"{start:g}+{step:g}x960"


def gateway(outcome: str, of_a_hundred: float) -> Series:
    return {
        f'orchestrator_gateway_requests_total{{instance="g",outcome="{outcome}"}}': rising(of_a_hundred),
        'orchestrator_gateway_requests_total{instance="g",outcome="ok"}': rising(100 - of_a_hundred),
    }


def cut(of_a_thousand: float) -> Series:
    """Streams that were cut, of so many requests."""
    return {
        'orchestrator_gateway_streams_cut_total{instance="g",reason="lost"}': rising(of_a_thousand / 2),
        'orchestrator_gateway_streams_cut_total{instance="g",reason="disconnected"}': rising(
            of_a_thousand / 2
        ),
        'orchestrator_gateway_requests_total{instance="g",outcome="ok"}': rising(1000 - of_a_thousand),
        'orchestrator_gateway_requests_total{instance="g",outcome="cut"}': rising(of_a_thousand),
    }


def continuations(failed: float, continued: float) -> Series:
    name = "orchestrator_gateway_continuations_total"
    return {
        f'{name}{{instance="g",kind="exact",result="failed"}}': rising(failed),
        f'{name}{{instance="g",kind="exact",result="continued"}}': rising(continued),
    }


def provided(requests: float, failures: float) -> Series:
    """Requests that a provider got, and failures among them."""
    whose = 'instance="g",provider="api"'
    return {
        f'orchestrator_gateway_provider_requests_total{{{whose},route="r",model="m",outcome="ok"}}': rising(
            requests
        ),
        f'orchestrator_gateway_provider_failures_total{{{whose},reason="connect"}}': rising(failures),
    }


def standing_in(now: str) -> Series:
    """Whether the provider of `provided` gets requests of its route in the place of others."""
    return {'orchestrator_gateway_route_stands_in{instance="g",route="r",provider="api"}': now}


def capped(**dollars: float) -> Series:
    """What of a provider's cap is used, as two gateways that share a file tell it."""
    names = {"spent": "spent_today_dollars", "held": "held_dollars", "cap": "cap_dollars"}
    return {
        f'orchestrator_gateway_provider_{names[what]}{{instance="{at}",provider="api"}}': always(amount)
        for what, amount in dollars.items()
        for at in ("g", "h")
    }


def calls(outcome: str, bad: float, good: float) -> Series:
    labels = 'pool="a",port="instances",operation="list"'
    return {
        f'orchestrator_calls_total{{{labels},outcome="{outcome}"}}': rising(bad),
        f'orchestrator_calls_total{{{labels},outcome="ok"}}': rising(good),
    }


def offerings(market: str, *, opened: int) -> Series:
    return {
        f'orchestrator_market_offerings{{pool="a",market="{market}",state="open"}}': always(opened),
        f'orchestrator_market_offerings{{pool="a",market="{market}",state="blocked"}}': always(2),
    }


def one(series: str, fires: str, not_with: str, *, after: str = "10m", **labels: str) -> Case:
    """A case of one series."""
    return Case(fires={series: fires}, not_with={series: not_with}, labels=labels, after=after)


def late(of_a_hundred: float) -> Series:
    """Streams whose first token took longer than 2.5 s."""
    name = 'orchestrator_gateway_first_token_seconds_{}{{instance="g",pool="a",model="m"{}}}'
    return {
        name.format("bucket", ',le="2.5"'): rising(100 - of_a_hundred),
        name.format("count", ""): rising(100),
    }


def week(**dollars: float) -> Series:
    """What the last seven days cost a million tokens, of a pool that was there for longer."""
    return {
        'orchestrator_pool_usd_per_million_tokens{pool="a",people="with"}': always(dollars["pool"]),
        'orchestrator_pool_api_usd_per_million_tokens{pool="a"}': always(dollars["api"]),
        'orchestrator_pool_spent_usd{pool="a"}': rising(1),
    }


def used(share: float, spent: str) -> Series:
    return {
        'orchestrator_pool_utilisation_ratio{pool="a"}': always(share),
        'orchestrator_pool_spent_usd{pool="a"}': spent,
    }


def month(what: str, dollars: float) -> Series:
    name = 'orchestrator_month_{}_usd{{instance="d"}}'
    return {name.format(what): always(dollars), name.format("budget"): always(1000)}


def flag(name: str, *, after: str = "10m") -> Case:
    """A gauge of a gateway that is 1 while something is wrong."""
    return one(
        f'orchestrator_gateway_{name}{{instance="g"}}', always(1), always(0), after=after, instance="g"
    )


CASES: dict[str, Case] = {
    "OrchestratorPoolDown": Case(
        fires={'orchestrator_pool_state{pool="a",state="down"}': "0x8 1x900"},
        not_with={
            'orchestrator_pool_state{pool="a",state="down"}': always(0),
            'orchestrator_pool_state{pool="a",state="below-floor"}': always(1),
        },
        labels=POOL,
        after="3m",
    ),
    "OrchestratorBalancerUnreadable": Case(
        fires={
            'orchestrator_observation_age_seconds{pool="a",kind="balancer",part="alb"}': rising(15),
            'orchestrator_pool_state{pool="a",state="down"}': always(0),
            'orchestrator_pool_state{pool="b",state="down"}': always(1),
        },
        not_with={
            'orchestrator_observation_age_seconds{pool="a",kind="balancer",part="alb"}': rising(15),
            'orchestrator_pool_state{pool="a",state="down"}': always(1),
            'orchestrator_observation_age_seconds{pool="b",kind="balancer",part="alb"}': "0+15x4 0x900",
            'orchestrator_pool_state{pool="b",state="down"}': always(0),
        },
        labels={**POOL, "kind": "balancer", "part": "alb"},
    ),
    "OrchestratorPoolBelowFloor": one(
        'orchestrator_pool_state{pool="a",state="below-floor"}',
        always(1),
        "1x4 0x100",
        pool="a",
        state="below-floor",
        after="3m",
    ),
    "OrchestratorPoolShort": Case(
        fires={
            'orchestrator_pool_ready_nodes{pool="a",market="spot"}': always(2),
            'orchestrator_pool_ready_nodes{pool="a",market="on-demand"}': always(1),
            'orchestrator_pool_wanted_nodes{pool="a"}': always(4),
        },
        not_with={
            'orchestrator_pool_ready_nodes{pool="a",market="spot"}': "2x30 3x900",  # a boot of 7 minutes
            'orchestrator_pool_ready_nodes{pool="a",market="on-demand"}': always(1),
            'orchestrator_pool_wanted_nodes{pool="a"}': always(4),
            'orchestrator_pool_ready_nodes{pool="started-never",market="spot"}': always(0),
            'orchestrator_pool_wanted_nodes{pool="started-never"}': always(4),
            'orchestrator_alarm{pool="started-never",name="never-started"}': always(1),
        },
        labels=POOL,
        after="20m",
    ),
    "OrchestratorAllTargetsUnhealthy": Case(
        fires={
            'orchestrator_balancer_targets{pool="a",balancer="gw",state="healthy"}': always(0),
            'orchestrator_balancer_targets{pool="a",balancer="gw",state="unhealthy"}': always(4),
            'orchestrator_pool_wanted_nodes{pool="a"}': always(4),
        },
        not_with={
            'orchestrator_balancer_targets{pool="a",balancer="gw",state="healthy"}': always(1),
            'orchestrator_balancer_targets{pool="a",balancer="gw",state="unhealthy"}': always(3),
            'orchestrator_pool_wanted_nodes{pool="a"}': always(4),
            'orchestrator_balancer_targets{pool="starts",balancer="gw",state="healthy"}': always(0),
            'orchestrator_pool_wanted_nodes{pool="starts"}': always(4),
            'orchestrator_pool_state{pool="starts",state="starting"}': always(1),
            'orchestrator_balancer_targets{pool="none-wanted",balancer="gw",state="healthy"}': always(0),
            'orchestrator_pool_wanted_nodes{pool="none-wanted"}': always(0),
        },
        labels={**POOL, "balancer": "gw"},
    ),
    "OrchestratorNodesUnhealthy": one(
        'orchestrator_pool_unhealthy_nodes{pool="a"}', always(2), "2x20 0x900", pool="a", after="11m"
    ),
    "OrchestratorBalancerDisagrees": one(
        'orchestrator_balancer_differing_targets{pool="a",balancer="gw"}',
        always(1),
        "1x4 0x4 1x4 0x900",
        pool="a",
        balancer="gw",
        after="3m",
    ),
    "OrchestratorUnknownInstance": one(
        'orchestrator_pool_unknown_instances{pool="a"}', always(1), always(0), pool="a", after="11m"
    ),
    "OrchestratorInstanceLeaked": one(
        'orchestrator_pool_oldest_open_call_seconds{pool="a",kind="terminate"}',
        rising(15),
        "0+15x40 0x900",  # it ended after ten minutes
        pool="a",
        kind="terminate",
        after="20m",
    ),
    "OrchestratorPaused": one(
        'orchestrator_pool_paused{pool="a"}', always(1), "1x200 0x900", pool="a", after="65m"
    ),
    "OrchestratorAlarmRaised": one(
        'orchestrator_alarm{pool="a",name="InvariantViolated"}',
        always(1),
        "1x4 0x900",
        pool="a",
        name="InvariantViolated",
    ),
    "OrchestratorNeverStarted": one(
        'orchestrator_alarm{pool="a",name="never-started"}',
        always(1),
        always(0),
        pool="a",
        name="never-started",
    ),
    "OrchestratorMarketPaused": one(
        'orchestrator_pool_market_paused{pool="a",region="us-east-1",market="spot"}',
        always(1),
        "1x4 _x900",
        pool="a",
        region="us-east-1",
        market="spot",
    ),
    "OrchestratorBootsFailing": Case(
        fires={
            'orchestrator_boots_failed_total{pool="a",market="spot"}': "0x8 1x20 2x20 3x900",
            'orchestrator_boots_failed_total{pool="a",market="on-demand"}': "0x8 1x900",
            'orchestrator_alarm{pool="a",name="never-started"}': always(0),
        },
        not_with={
            'orchestrator_boots_failed_total{pool="a",market="spot"}': "0x8 1x20 2x900",
            'orchestrator_boots_failed_total{pool="started-never",market="spot"}': "0x8 1x20 2x20 4x900",
            'orchestrator_alarm{pool="started-never",name="never-started"}': always(1),
            'orchestrator_boots_failed_total{pool="paused",market="spot"}': "0x8 1x20 2x20 4x900",
            'orchestrator_pool_market_paused{pool="paused",region="r",market="spot"}': always(1),
        },
        labels=POOL,
        after="30m",
    ),
    # A node tells of an error for as long as it runs: one more is news for an hour, also after a gap.
    "OrchestratorGpuErrors": Case(
        fires={
            'orchestrator_gpu_xid_errors{pool="a",node="i-1",code="31"}': "1x400 2x500",
            'orchestrator_gpu_xid_errors{pool="a",node="i-1",code="43"}': always(7),
        },
        not_with={
            'orchestrator_gpu_xid_errors{pool="a",node="i-1",code="31"}': "1x150 _x60 1x700",
            'orchestrator_gpu_xid_errors{pool="a",node="i-2",code="31"}': "9x100 1x900",
            'orchestrator_gpu_xid_errors{pool="a",node="i-3",code="31"}': "_x100 1x10 _x900",
        },
        labels={"pool": "a", "node": "i-1", "code": "31"},
        after="110m",
    ),
    "OrchestratorGpuBroken": Case(
        fires={'orchestrator_node_gpus_ask{pool="a",node="i-1",remedy="reset"}': always(1)},
        not_with={
            'orchestrator_node_gpus_ask{pool="a",node="i-1",remedy="reset"}': always(0),
            'orchestrator_node_gpus_ask{pool="a",node="i-1",remedy="restart"}': always(1),
            'orchestrator_node_gpus_ask{pool="a",node="i-2",remedy="person"}': always(1),
        },
        labels={"pool": "a", "node": "i-1", "remedy": "reset"},
        after="30s",
    ),
    "OrchestratorAdapterMissing": Case(
        fires={'orchestrator_adapter_missing_nodes{pool="a",adapter="sql"}': always(1)},
        not_with={'orchestrator_adapter_missing_nodes{pool="a",adapter="sql"}': "1x16 0x900"},
        labels={"pool": "a", "adapter": "sql"},
        after="5m",
    ),
    "OrchestratorGpuThrottled": Case(
        fires={'orchestrator_node_throttled_seconds{pool="a",node="i-1"}': rising(15)},
        not_with={'orchestrator_node_throttled_seconds{pool="a",node="i-1"}': "0+15x16 0x900"},
        labels={"pool": "a", "node": "i-1"},
    ),
    "OrchestratorGpuEccRising": Case(
        fires={
            'orchestrator_gpu_corrected_ecc_errors{pool="a",node="i-1",gpu="0"}': rising(0.3),
            'orchestrator_gpu_corrected_ecc_errors{pool="a",node="i-1",gpu="1"}': rising(0.3),
        },
        not_with={'orchestrator_gpu_corrected_ecc_errors{pool="a",node="i-1",gpu="0"}': rising(0.3, 9_000)},
        labels={"pool": "a", "node": "i-1"},
        after="1h",
    ),
    "OrchestratorNodeSlow": Case(
        fires={'orchestrator_node_slow_seconds{pool="a",node="i-1"}': rising(15)},
        not_with={'orchestrator_node_slow_seconds{pool="a",node="i-1"}': "0+15x16 0x900"},
        labels={"pool": "a", "node": "i-1"},
    ),
    "OrchestratorGpusUnread": one(
        'orchestrator_pool_gpus_unread{pool="a"}', always(2), "2x40 0x900", after="20m", **POOL
    ),
    "OrchestratorEnginesOverloaded": Case(
        fires={
            'orchestrator_engine_waiting_requests{pool="a",node="i-1"}': always(9),
            'orchestrator_engine_waiting_requests{pool="a",node="i-2"}': always(9),
            'orchestrator_engine_running_requests{pool="a",node="i-1"}': always(4),
            'orchestrator_engine_running_requests{pool="a",node="i-2"}': always(4),
        },
        not_with={
            'orchestrator_engine_waiting_requests{pool="a",node="i-1"}': always(9),
            'orchestrator_engine_waiting_requests{pool="a",node="i-2"}': always(0),
            'orchestrator_engine_running_requests{pool="a",node="i-1"}': always(8),
            'orchestrator_engine_running_requests{pool="a",node="i-2"}': always(8),
        },
        labels=POOL,
        after="11m",
    ),
    "OrchestratorNoticesUnheard": one(
        'orchestrator_notice_source_age_seconds{source="aws-queue"}',
        rising(15),
        "0+15x4 0x900",
        source="aws-queue",
    ),
    "OrchestratorDetachSlow": Case(
        fires={
            'orchestrator_notice_to_detached_seconds_bucket{pool="a",le="5.0"}': always(0),
            'orchestrator_notice_to_detached_seconds_bucket{pool="a",le="10.0"}': rising(1),
            'orchestrator_notice_to_detached_seconds_bucket{pool="a",le="+Inf"}': rising(1),
        },
        not_with={
            'orchestrator_notice_to_detached_seconds_bucket{pool="a",le="5.0"}': rising(1),
            'orchestrator_notice_to_detached_seconds_bucket{pool="a",le="10.0"}': rising(1),
            'orchestrator_notice_to_detached_seconds_bucket{pool="a",le="+Inf"}': rising(1),
        },
        labels=POOL,
    ),
    "OrchestratorSwapLate": one(
        'orchestrator_pool_overdue_swaps{pool="a"}', always(1), "1x40 0x900", pool="a", after="16m"
    ),
    "OrchestratorSwapFailed": one(
        'orchestrator_swap_failures_total{pool="a"}', "0x4 5x900", "0x4 1x900", pool="a", after="5m"
    ),
    "OrchestratorDrainCut": one(
        'orchestrator_drains_cut_total{pool="a"}', "0x4 1x900", always(1), pool="a", after="5m"
    ),
    "OrchestratorCloudUnreadable": Case(  # one of two regions
        fires={
            'orchestrator_observation_age_seconds{pool="a",kind="cloud",part="us-west-2"}': rising(15),
            'orchestrator_observation_age_seconds{pool="a",kind="cloud",part="us-east-1"}': always(3),
        },
        not_with={
            'orchestrator_observation_age_seconds{pool="a",kind="cloud",part="instances"}': always(30),
            'orchestrator_observation_age_seconds{pool="a",kind="balancer",part="gateway"}': rising(15),
        },
        labels={**POOL, "kind": "cloud", "part": "us-west-2"},
    ),
    "OrchestratorPricesStale": Case(
        fires={
            'orchestrator_prices_age_seconds{pool="a",part="us-east-1 on-demand"}': rising(15),
            'orchestrator_prices_age_seconds{pool="a",part="us-east-1 spot"}': always(60),
        },
        not_with={'orchestrator_prices_age_seconds{pool="a",part="us-east-1 on-demand"}': always(800)},
        labels={**POOL, "part": "us-east-1 on-demand"},
        after="25m",
    ),
    "OrchestratorCloudThrottled": Case(
        fires=calls("throttled", bad=1, good=9),
        not_with=calls("throttled", bad=0, good=9),
        labels={"operation": "list"},
    ),
    "OrchestratorSkyPilotHelperFailing": Case(
        {'orchestrator_skypilot_helper_up{helper="skypilot"}': always(0)},
        {
            'orchestrator_skypilot_helper_up{helper="skypilot"}': always(1),
            'orchestrator_skypilot_helper_ends_total{helper="skypilot"}': "0x8 1x952",
        },
        {"helper": "skypilot"},
    ),
    "OrchestratorCloudDenied": Case(
        fires={'orchestrator_aws_calls_total{operation="sqs.receive_message",outcome="denied"}': rising(1)},
        not_with={
            'orchestrator_aws_calls_total{operation="sqs.receive_message",outcome="ok"}': rising(1),
            'orchestrator_aws_calls_total{operation="ec2.run_instances",outcome="denied"}': rising(1),
            'orchestrator_aws_calls_total{operation="ec2.get_console_output",outcome="denied"}': rising(1),
            'orchestrator_calls_total{pool="a",operation="launch",outcome="denied"}': rising(1),
            'orchestrator_calls_total{pool="a",operation="console",outcome="denied"}': rising(1),
        },
        labels={"operation": "sqs.receive_message"},
    ),
    "OrchestratorCloudFailing": Case(
        fires=calls("error", bad=2, good=1),
        not_with=calls("error", bad=1, good=2),
        labels={**POOL, "port": "instances", "operation": "list"},
    ),
    "OrchestratorSpotRefusedEverywhere": Case(
        # Nothing is open at first; then all are on demand, and what was refused is tried now and then.
        fires={
            **offerings("spot", opened=0),
            'orchestrator_market_offerings{pool="a",market="spot",state="open"}': "0x70 1x2 0x18 1x900",
            'orchestrator_pool_state{pool="a",state="all-on-demand"}': "0x60 1x900",
        },
        not_with={
            **offerings("spot", opened=1),
            'orchestrator_pool_state{pool="a",state="all-on-demand"}': always(0),
        },
        labels=POOL,
        after="31m",
    ),
    "OrchestratorOnDemandRefusedEverywhere": Case(
        fires=offerings("on-demand", opened=0),
        not_with=offerings("on-demand", opened=1),
        labels={**POOL, "market": "on-demand", "state": "open"},
    ),
    "OrchestratorSpendCapReached": one(
        'orchestrator_pool_spend_cap_reached{pool="a"}', always(1), "1x8 0x900", pool="a"
    ),
    "OrchestratorDaemonDown": one(
        'up{job="orchestrator",instance="d"}', always(0), "1x8 0x2 1x900", job="orchestrator", instance="d"
    ),
    "OrchestratorNotLeading": one('orchestrator_leading{pool="a"}', always(0), "0x2 1x900", pool="a"),
    "OrchestratorDatabaseSilent": one(  # silent from the second sample on: its `for` is as long as a sample
        'orchestrator_database_silent_seconds{pool="a"}', "0 9+15x960", "0x4 9x0 0x900", pool="a"
    ),
    "OrchestratorLoopStalled": one('orchestrator_turns_total{pool="a"}', always(7), rising(1), pool="a"),
    "OrchestratorLoopSlow": Case(
        fires={
            'orchestrator_loop_lag_seconds_bucket{instance="d",le="0.5"}': always(0),
            'orchestrator_loop_lag_seconds_bucket{instance="d",le="1.0"}': rising(1),
            'orchestrator_loop_lag_seconds_bucket{instance="d",le="+Inf"}': rising(1),
        },
        not_with={
            'orchestrator_loop_lag_seconds_bucket{instance="d",le="0.5"}': rising(1),
            'orchestrator_loop_lag_seconds_bucket{instance="d",le="1.0"}': rising(1),
            'orchestrator_loop_lag_seconds_bucket{instance="d",le="+Inf"}': rising(1),
        },
        labels={"instance": "d"},
        after="15m",
    ),
    "OrchestratorEventsDropped": one("orchestrator_inbox_dropped_events", "0x4 9x900", always(9), after="5m"),
    "OrchestratorJournalFailing": one("orchestrator_journal_ok", "1x8 0x900", "1x8 0x1 1x900", after="3m"),
    "OrchestratorDiskFilling": one("orchestrator_state_dir_free_bytes", always(1e6), always(1e9)),
    "OrchestratorClockStepped": one("orchestrator_clock_step_seconds", always(-86400), always(0.2)),
    "OrchestratorReloadRejected": one("orchestrator_config_last_reload_successful", always(0), "0x3 1x900"),
    "OrchestratorFilesNearLimit": Case(
        fires={
            'process_open_fds{job="orchestrator",instance="d"}': always(900),
            'process_max_fds{job="orchestrator",instance="d"}': always(1024),
        },
        not_with={
            'process_open_fds{job="orchestrator",instance="d"}': always(100),
            'process_max_fds{job="orchestrator",instance="d"}': always(1024),
            'process_open_fds{job="other",instance="d"}': always(1000),
            'process_max_fds{job="other",instance="d"}': always(1024),
        },
        labels={"job": "orchestrator", "instance": "d"},
    ),
    "OrchestratorMemoryHigh": one(
        'process_resident_memory_bytes{job="orchestrator-gateway",instance="g"}',
        always(2e9),
        always(2e8),
        job="orchestrator-gateway",
        instance="g",
        after="16m",
    ),
    "OrchestratorLogsDropped": one("orchestrator_log_dropped_lines", "0x4 9x900", always(9), after="5m"),
    "OrchestratorGatewayDown": Case(
        fires={
            'up{job="orchestrator-gateway",instance="g"}': always(0),
            'orchestrator_pool_state{pool="a",state="down"}': always(0),
        },
        not_with={
            'up{job="orchestrator-gateway",instance="g"}': always(0),
            'up{job="orchestrator-gateway",instance="other"}': "1x8 0x1 1x900",
            'orchestrator_pool_state{pool="a",state="down"}': "0x1 1x900",
        },
        labels={"job": "orchestrator-gateway", "instance": "g"},
    ),
    "OrchestratorGatewayShedding": Case(
        fires=gateway("refused", 5), not_with=gateway("refused", 0.5), labels={"instance": "g"}
    ),
    "OrchestratorGatewayFailing": Case(
        fires=gateway("cut", 5), not_with=gateway("client_error", 50), labels={"instance": "g"}
    ),
    "OrchestratorStreamsCut": Case(fires=cut(2.0), not_with=cut(0.5), labels={"instance": "g"}, after="20m"),
    "OrchestratorContinuationsFailing": Case(
        fires=continuations(1.0, 4.0),
        not_with=continuations(1.0, 20.0),
        labels={"instance": "g"},
        after="20m",
    ),
    "OrchestratorPaidFallback": Case(
        fires={**provided(1, 0), **standing_in(always(1))},
        not_with={**provided(1, 0), **standing_in("1x3 0x900")},
        labels={"instance": "g", "route": "r", "provider": "api"},
        after="20m",
    ),
    "OrchestratorRouteUnserved": one(
        'orchestrator_gateway_route_servable{instance="g",route="chat"}',
        "1x8 0x900",
        "0x2 1x900",
        instance="g",
        route="chat",
    ),
    "OrchestratorProviderCapNear": Case(
        fires=capped(spent=30, held=15, cap=50),
        not_with=capped(spent=30, held=5, cap=50),
        labels={"provider": "api", "whose": "provider api"},
    ),
    "OrchestratorProviderCapReached": one(
        'orchestrator_gateway_provider_cap_reached_total{instance="g",provider="api",route="chat"}',
        rising(1),
        always(7),
        provider="api",
        route="chat",
    ),
    "OrchestratorProviderFailing": Case(
        fires=provided(10, 5), not_with=provided(100, 5), labels={"instance": "g", "provider": "api"}
    ),
    "OrchestratorSpendFileFailing": one(
        'orchestrator_gateway_provider_spend_file_failing{instance="g"}', always(1), always(0), instance="g"
    ),
    "OrchestratorGatewayDaemonSilent": one(
        'orchestrator_gateway_daemon_silence_seconds{instance="g"}', rising(15), always(60), instance="g"
    ),
    "OrchestratorCertificateExpiring": one(
        'orchestrator_gateway_tls_certificate_expires_seconds{instance="g"}',
        always(6 * 86400),
        always(9 * 86400),
        instance="g",
    ),
    "OrchestratorCertificateRefused": flag("tls_certificate_refused"),
    "OrchestratorKeysUnread": flag("keys_unread"),
    "OrchestratorKeysFileRefused": flag("keys_file_refused"),
    "OrchestratorKeyLimitsAlone": flag("key_limits_alone"),
    "OrchestratorUsageFileFailing": flag("usage_file_failing"),
    "OrchestratorMonthOverBudget": Case(
        month("expected", 1001), month("expected", 999), labels={"instance": "d"}, after="2h"
    ),
    "OrchestratorBudgetSpent": Case(month("spent", 1001), month("spent", 999), labels={"instance": "d"}),
    "OrchestratorApiCheaper": Case(
        fires=week(pool=3.0, api=2.9), not_with=week(pool=2.9, api=3.0), labels=POOL, after="8d", every="1h"
    ),
    "OrchestratorUtilisationLow": Case(
        fires=used(0.09, rising(1)),
        not_with=used(0.09, "_x100 0+1x900"),  # a pool of four days
        labels=POOL,
        after="8d",
        every="1h",
    ),
    "OrchestratorErrorBudgetBurning": Case(
        gateway("failed", 0.7), gateway("failed", 0.5), labels={"instance": "g"}, after="2h"
    ),
    "OrchestratorErrorBudgetLeaking": Case(
        gateway("cut", 0.2), gateway("cut", 0.05), labels={"instance": "g"}, after="2h"
    ),
    "OrchestratorFirstTokenBurning": Case(late(35), late(25), labels={"instance": "g"}, after="2h"),
    "OrchestratorFirstTokenLate": Case(late(6), late(4), labels={"instance": "g"}, after="2h"),
}


def write_case(name: str, rule: dict[str, Any], into: Path) -> str:
    """A rule by itself and promtool's tests of it: it fires, not before its `for`, not with the others."""
    case, severity = CASES[name], ALERTS[name]["labels"]["severity"]
    firing = [{"exp_labels": {**case.labels, "severity": severity}}]
    tests = []
    for series, expected in ((case.fires, firing), (case.not_with, [])):
        checks = [{"eval_time": case.after, "alertname": name, "exp_alerts": expected}]
        if expected and "for" in rule:
            checks.append({"eval_time": case.every, "alertname": name, "exp_alerts": []})
        shown = [{"series": s, "values": v} for s, v in series.items()]
        tests.append({"interval": case.every, "input_series": shown, "alert_rule_test": checks})
    bare = {key: value for key, value in rule.items() if key != "annotations"}
    used = [record for record in RECORDS if record["record"] in rule["expr"]]
    rules = {"groups": [{"name": name, "rules": [*used, bare]}]}
    (into / f"{name}.rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    file = {"rule_files": [f"{name}.rules.yaml"], "evaluation_interval": case.every, "tests": tests}
    (into / f"{name}.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    return f"{name}.yaml"


DEAD_GATEWAY: Series = {
    'up{job="orchestrator",instance="d"}': always(1),
    'up{job="orchestrator-gateway",instance="g"}': "1x3 0x900",
    'orchestrator_pool_state{pool="a",state="ok"}': "1x4 0x900",
    'orchestrator_pool_state{pool="a",state="down"}': "0x4 1x900",
    'orchestrator_pool_wanted_nodes{pool="a"}': always(4),
    'orchestrator_pool_ready_nodes{pool="a",market="spot"}': always(4),
    'orchestrator_balancer_targets{pool="a",balancer="gateway",state="healthy"}': "4x4 _x900",
    'orchestrator_balancer_differing_targets{pool="a",balancer="gateway"}': "0x4 _x900",
    'orchestrator_observation_age_seconds{pool="a",kind="balancer",part="gateway"}': "1x3 0+15x900",
    'orchestrator_observation_age_seconds{pool="a",kind="cloud",part="instances"}': always(3),
    'orchestrator_observation_age_seconds{pool="a",kind="prices",part="offerings"}': always(60),
    'orchestrator_calls_total{pool="a",port="gateway",operation="read",outcome="ok"}': "0+4x3 12x900",
    'orchestrator_calls_total{pool="a",port="gateway",operation="read",outcome="uncertain"}': "0x3 0+4x900",
    'orchestrator_calls_total{pool="a",port="instances",operation="list",outcome="ok"}': rising(3),
    "orchestrator_turns_total": rising(15),
    'orchestrator_leading{pool="a"}': always(1),
    "orchestrator_journal_ok": always(1),
}
"""What Prometheus has of a pool whose gateway was killed, and is well in every other way."""


@needs_promtool
def test_a_dead_gateway_is_one_page_for_as_long_as_it_is_dead(tmp_path: Path) -> None:
    """All the shipped rules together: one alert, from the first evaluation on, and no second one later."""
    fires = {"OrchestratorPoolDown": {"pool": "a", "severity": "page"}}
    check_all(DEAD_GATEWAY, fires, ("75s", "2m", "3m", "6m", "15m"), tmp_path)
    check_all(DEAD_GATEWAY, fires, ("60m",), tmp_path, every="1m")


def check_all(
    series: Series,
    fires: dict[str, dict[str, str]],
    times: Sequence[str],
    into: Path,
    *,
    of: Collection[str] = tuple(ALERTS),
    every: str = "15s",
) -> None:
    """With these series, all the shipped rules give these alerts at these times, and no others `of` them.

    Samples come every 15 s; `every`: how often the rules are evaluated.
    """
    bare = [{k: v for k, v in rule.items() if k != "annotations"} for rule in ALERTS.values()]
    rules = {"groups": [{"name": "all", "rules": [*RECORDS, *bare]}]}
    (into / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    checks = [
        {
            "eval_time": at,
            "alertname": name,
            "exp_alerts": [{"exp_labels": fires[name]}] if name in fires else [],
        }
        for at in times
        for name in of
    ]
    shown = [{"series": s, "values": v} for s, v in series.items()]
    test = {"interval": "15s", "input_series": shown, "alert_rule_test": checks}
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": every, "tests": [test]}
    (into / "all.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    done = promtool("test", "rules", "all.yaml", cwd=into)
    assert done.returncode == 0, done.stdout + done.stderr


CALM: Series = {
    'up{job="orchestrator",instance="d"}': always(1),
    'up{job="orchestrator-gateway",instance="g"}': always(1),
    "orchestrator_turns_total": rising(15),
    "orchestrator_journal_ok": always(1),
    'orchestrator_leading{pool="a"}': always(1),
    'orchestrator_observation_age_seconds{pool="a",kind="cloud",part="us-east-1"}': always(3),
    'orchestrator_pool_wanted_nodes{pool="a"}': always(10),
}
"""A daemon that is well, whatever its pool does."""


@needs_promtool
def test_a_key_that_is_not_granted_is_one_page(tmp_path: Path) -> None:
    """A new account whose images are encrypted: three machines end while pending, nothing is ever ready.

    Also where the daemon may not read consoles.
    """
    series = {
        **CALM,
        'orchestrator_pool_state{pool="a",state="starting"}': always(1),
        'orchestrator_pool_state{pool="a",state="down"}': always(0),
        'orchestrator_pool_ready_nodes{pool="a",market="spot"}': always(0),
        'orchestrator_pool_ready_nodes{pool="a",market="on-demand"}': always(0),
        'orchestrator_balancer_targets{pool="a",balancer="gateway",state="healthy"}': always(0),
        'orchestrator_balancer_differing_targets{pool="a",balancer="gateway"}': always(0),
        'orchestrator_boots_failed_total{pool="a",market="spot"}': "0 0 2x900",
        'orchestrator_boots_failed_total{pool="a",market="on-demand"}': "0 0 1x900",
        'orchestrator_alarm{pool="a",name="never-started"}': "0 0 0 1x900",
        **offerings("spot", opened=0),
        **offerings("on-demand", opened=0),
        'orchestrator_aws_calls_total{operation="ec2.get_console_output",outcome="denied"}': "0 0 3x900",
        'orchestrator_calls_total{pool="a",operation="console",outcome="denied"}': "0 0 3x900",
        'orchestrator_calls_total{pool="a",operation="launch",outcome="ok"}': "0 0 3x900",
    }
    fires = {"OrchestratorNeverStarted": {"pool": "a", "name": "never-started", "severity": "page"}}
    check_all(series, fires, ("75s", "6m"), tmp_path)
    check_all(series, fires, ("20m", "60m", "3h"), tmp_path, every="2m")


@needs_promtool
def test_an_account_without_the_role_for_spot_is_one_page(tmp_path: Path) -> None:
    """On-demand comes up as far as it is wanted; what is missing of spot waits for a person."""
    series = {
        **CALM,
        'orchestrator_pool_state{pool="a",state="starting"}': always(1),
        'orchestrator_pool_ready_nodes{pool="a",market="spot"}': always(0),
        'orchestrator_pool_ready_nodes{pool="a",market="on-demand"}': "0x30 3x900",
        'orchestrator_balancer_targets{pool="a",balancer="gateway",state="healthy"}': "0x30 3x900",
        'orchestrator_pool_market_paused{pool="a",region="us-east-1",market="spot"}': "_ 1x900",
        'orchestrator_alarm{pool="a",name="market-paused"}': "0 1x900",
        **offerings("spot", opened=0),
        **offerings("on-demand", opened=2),
        'orchestrator_aws_calls_total{operation="ec2.run_instances",outcome="denied"}': "0 1x20 2x40 3x900",
        'orchestrator_calls_total{pool="a",operation="launch",outcome="denied"}': "0 1x20 2x900",
        'orchestrator_calls_total{pool="a",operation="launch",outcome="ok"}': "0 3x900",
    }
    paused = {"pool": "a", "region": "us-east-1", "market": "spot", "severity": "page"}
    check_all(series, {"OrchestratorMarketPaused": paused}, ("75s", "6m"), tmp_path)
    short = {
        "OrchestratorMarketPaused": paused,
        "OrchestratorPoolShort": {"pool": "a", "severity": "warning"},
    }
    check_all(series, short, ("20m", "3h"), tmp_path, every="2m")  # which Alertmanager keeps back: see below


@needs_promtool
def test_one_bad_answer_where_few_ask_wakes_nobody(tmp_path: Path) -> None:
    """A request every five minutes, of which one fails and three wait long: a large share, and no news."""
    asked = " ".join(f"{n}x19" for n in range(48))
    quick = " ".join(f"{n - sum(n > late for late in (9, 10, 11))}x19" for n in range(48))
    name = 'orchestrator_gateway_first_token_seconds_{}{{instance="g",pool="a",model="m"{}}}'
    series = {
        **CALM,
        'orchestrator_pool_state{pool="a",state="ok"}': always(1),
        'orchestrator_pool_ready_nodes{pool="a",market="spot"}': always(10),
        'orchestrator_balancer_targets{pool="a",balancer="gateway",state="healthy"}': always(10),
        'orchestrator_balancer_differing_targets{pool="a",balancer="gateway"}': always(0),
        'orchestrator_gateway_requests_total{instance="g",outcome="ok"}': asked,
        'orchestrator_gateway_requests_total{instance="g",outcome="upstream_error"}': "0x199 1x760",
        name.format("count", ""): asked,
        name.format("bucket", ',le="2.5"'): quick,
    }
    times = ("51m", "55m", "58m", "61m", "66m", "2h", "3h")
    ours = ("OrchestratorErrorBudget", "OrchestratorFirstToken")
    check_all(series, {}, times, tmp_path, of=[a for a in ALERTS if a.startswith(ours)], every="1m")


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


@needs_promtool
def test_every_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    assert set(CASES) == set(ALERTS), "every alert needs a case, and every case an alert"
    files = [write_case(name, rule, tmp_path) for name, rule in ALERTS.items()]
    done = promtool("test", "rules", *files, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("change", [("> 0", "> 1"), ("> 0", ">= 0")], ids=["never", "always"])
def test_a_rule_that_is_wrong_fails_its_case(tmp_path: Path, change: tuple[str, str]) -> None:
    """The suite above can fail, in both directions."""
    rule = ALERTS["OrchestratorUnknownInstance"]
    wrong = {**rule, "expr": rule["expr"].replace(*change)}
    assert wrong != rule
    done = promtool("test", "rules", write_case("OrchestratorUnknownInstance", wrong, tmp_path), cwd=tmp_path)
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr


@needs_promtool
@pytest.mark.debian("amtool", package="prometheus-alertmanager")
def test_what_is_shipped_is_valid(tmp_path: Path) -> None:
    for check, name in (("rules", "rules.yaml"), ("config", "prometheus.yaml")):
        done = promtool("check", check, name, cwd=SHIPPED)
        assert done.returncode == 0, done.stderr
    config = f"--config.file={SHIPPED / 'alertmanager.yaml'}"
    valid = subprocess.run(
        ["amtool", "check-config", SHIPPED / "alertmanager.yaml"], capture_output=True, text=True, timeout=60
    )
    assert valid.returncode == 0, valid.stdout + valid.stderr
    for severity, receiver in (("page", "pager"), ("warning", "chat")):
        routed = subprocess.run(
            ["amtool", "config", "routes", "test", config, f"severity={severity}", "alertname=X"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert routed.stdout.strip() == receiver


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_it_is_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert name.startswith("Orchestrator")
    assert rule["labels"]["severity"] in ("page", "warning")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    used = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
    assert used <= set(CASES[name].labels), "an annotation names a label that the alert does not have"
    assert notes["runbook_url"] == f"docs/runbooks/{name}.md"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"(?m)^## (.*)$", page) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    diagnosis = page.partition("## Diagnosis")[2].partition("## Mitigation")[0]
    assert "```sh" in diagnosis, "a diagnosis has commands to type"


def test_every_runbook_has_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("Orchestrator*.md")} == set(ALERTS)


def test_rules_ask_only_for_metrics_that_there_are() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"(?m)^\| `(\w+)` \|", page))
    known |= {f"{name}{suffix}" for name in known for suffix in ("_bucket", "_sum", "_count")}
    text = (SHIPPED / "rules.yaml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\b(?:orchestrator|process)_\w+", text))
    assert asked - known == set()


@pytest.mark.parametrize("inhibited", ["source_matchers", "target_matchers"])
def test_inhibitions_name_alerts_that_there_are(inhibited: str) -> None:
    text = yaml.safe_load((SHIPPED / "alertmanager.yaml").read_text(encoding="utf-8"))
    named = {
        name
        for rule in text["inhibit_rules"]
        for m in rule[inhibited]
        for name in re.findall(r"Orchestrator\w+", m)
    }
    assert named
    assert named <= set(ALERTS)


@pytest.mark.parametrize(
    ("source", "target", "equal"),
    [
        ("OrchestratorGpuBroken", "OrchestratorGpuErrors", ["pool", "node"]),
        ("OrchestratorGpuThrottled", "OrchestratorNodeSlow", ["pool", "node"]),
        ("OrchestratorGatewayFailing", "OrchestratorErrorBudgetBurning", ["instance"]),
        ("OrchestratorErrorBudgetBurning", "OrchestratorErrorBudgetLeaking", ["instance"]),
        ("OrchestratorFirstTokenBurning", "OrchestratorFirstTokenLate", ["instance"]),
        ("OrchestratorBudgetSpent", "OrchestratorMonthOverBudget", ["instance"]),
    ],
)
def test_one_trouble_is_told_once(source: str, target: str, equal: list[str]) -> None:
    """By the example for Alertmanager; both alerts have the labels that must be the same."""
    text = yaml.safe_load((SHIPPED / "alertmanager.yaml").read_text(encoding="utf-8"))
    rules = [r for r in text["inhibit_rules"] if source in r["source_matchers"][0]]
    assert equal in [r.get("equal") for r in rules if target in r["target_matchers"][0]]
    for name in (source, target):
        assert set(equal) <= set(CASES[name].labels)


def test_a_pool_that_is_short_since_its_boots_fail_is_told_once() -> None:
    """By the example for Alertmanager, for the alerts that say why."""
    text = yaml.safe_load((SHIPPED / "alertmanager.yaml").read_text(encoding="utf-8"))
    (rule,) = [r for r in text["inhibit_rules"] if "OrchestratorMarketPaused" in r["source_matchers"][0]]
    assert rule["equal"] == ["pool"]
    for cause in ("OrchestratorBootsFailing", "OrchestratorNeverStarted"):
        assert cause in rule["source_matchers"][0]
    assert "OrchestratorPoolShort" in rule["target_matchers"][0]


def test_the_runbooks_have_every_command_of_a_remedy() -> None:
    """What `orchestrator node` shows to type stands there too, with words in capitals for what differs."""
    pages = "".join(
        (RUNBOOKS / f"Orchestrator{name}.md").read_text(encoding="utf-8")
        for name in ("BootsFailing", "MarketPaused", "NeverStarted")
    )
    commands = {
        command
        for words in ("Client.InternalError", "VolumeLimitExceeded", "InvalidSnapshot")
        for market in Market
        if (found := remedy(words, "REGION", market)) is not None
        for command in found.commands
    }
    assert len(commands) == 3
    assert not [command for command in commands if command not in pages]
