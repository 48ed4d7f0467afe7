"""What the daemon counts and shows: true numbers, and no series that outlives what it describes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from cloud.agent_receiver import NodeReport
from cloud.clock import SystemClock
from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.sim.world import Pace, Sale
from orchestrator.api import gauges
from orchestrator.api.discovery import scrape_targets
from orchestrator.api.gauges import Gauges
from orchestrator.config.load import build_config
from orchestrator.journal.store import Totals
from orchestrator.loop.counters import PoolCounters
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.loop import Snapshot
from orchestrator.metrics import metrics
from orchestrator.metrics.calls import OUTCOMES, aws_call_ended, counted
from orchestrator.simulation.simulate import Simulation
from policies.actions import ActionKind
from policies.decide import decide
from policies.events import (
    BootFailed,
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeGone,
    NodeReady,
    NodeSeen,
    Outcome,
    PoolConfigured,
    PricesRead,
    Resumed,
)
from policies.fleet import Fleet
from policies.memory import Memory, reduce, replay
from policies.model import (
    EngineReading,
    Instance,
    InstanceState,
    Limits,
    Market,
    Observed,
    Offering,
    Placement,
    Pool,
    Target,
    TargetState,
    World,
)

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]
NOW = 5_000.0


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(f"orchestrator_{name}", labels)


def counted_so_far(name: str, **labels: str) -> float:
    return value(name, **labels) or 0.0


def anew(publish: Callable[..., None], *shown: Any) -> None:
    """Publish as a scrape does: after what came and went is cleared."""
    gauges.clear()
    publish(*shown)


def ran(last: Snapshot | None, name: str = "chat", *, down: str = "", failures: int = 0) -> Any:
    """A pool of a daemon with its newest turn."""
    return SimpleNamespace(
        name=name,
        last=last,
        loop=SimpleNamespace(unwritten=0),
        inbox=Inbox(),
        totals=Totals(),
        agents=None,
        gpus=None,
        sources=(),
        failures=failures,
        why_down=lambda: down,
    )


def series(name: str, **labels: str) -> list[str]:
    """The lines of a metric that carry these labels."""
    shown = generate_latest(metrics.REGISTRY).decode().splitlines()
    wanted = [f'{key}="{text}"' for key, text in labels.items()]
    return [
        line for line in shown if line.startswith(f"orchestrator_{name}{{") and all(w in line for w in wanted)
    ]


def machine(node: str, *, market: Market = Market.SPOT, token: str = "") -> Instance:
    return Instance(
        id=node,
        pool="chat",
        token=token or f"chat/1/{node[1:]}",
        placement=Placement("sim", "r", "a", "gpu", market),
        state=InstanceState.RUNNING,
        address=f"{node}:1",
        launched_at=1_000.0,
        price=2.0,
    )


def scene(
    *nodes: str,
    pool: Pool | None = None,
    more: tuple[Instance, ...] = (),
    later: tuple[Any, ...] = (),
    **world: Any,
) -> Snapshot:
    """A pool whose nodes are ready; balancer `gw` shows all of them."""
    pool = pool or Pool(name="chat", replicas=2)
    machines = tuple(machine(n) for n in nodes)
    events: list[Any] = [PoolConfigured(at=1.0, replicas=pool.replicas)]
    for m in machines:
        events.append(
            NodeSeen(
                at=1_000.0,
                node=m.id,
                token=m.token,
                placement=m.placement,
                launched_at=1_000.0,
                price=m.price,
                address=m.address,
                standby=None,
            )
        )
        events.append(NodeReady(at=1_060.0, node=m.id, address=m.address))
    memory = replay([*events, *later])
    targets = tuple(Target(id=m.id, address=m.address, state=TargetState.HEALTHY) for m in machines)
    seen = World(
        **{
            "now": NOW,
            "regions": {"": Observed(value=(*machines, *more), at=NOW - 3.0)},
            "engines": {
                m.id: EngineReading(
                    node=m.id, at=NOW, ready=True, ok=True, running=3, waiting=2, progress=10.0
                )
                for m in machines
            },
            "balancers": {"gw": Observed(value=targets, at=NOW)},
            "offerings": {
                f"r {market}": Observed(
                    value=tuple(
                        Offering(placement=Placement("sim", "r", zone, "gpu", market), price=price)
                        for zone in "ab"
                    ),
                    at=NOW - 60.0,
                )
                for market, price in ((Market.SPOT, 2.0), (Market.ON_DEMAND, 5.0))
            },
            **world,
        }
    )
    return Snapshot(
        fleet=Fleet.of(pool, seen, memory),
        world=seen,
        memory=memory,
        plan=decide(pool, seen, memory),
        at=NOW,
    )


def test_the_pool_is_shown_as_status_shows_it() -> None:
    anew(gauges.publish_pool, scene("s1", "s2"))
    assert value("pool_wanted_nodes", pool="chat") == 2
    assert value("pool_ready_nodes", pool="chat", market="spot") == 2
    assert value("pool_nodes", pool="chat", market="spot", phase="ready") == 2
    assert value("pool_nodes", pool="chat", market="on-demand", phase="draining") == 0
    states = {
        name: value("pool_state", pool="chat", state=name) for name in ("ok", "below-floor", "starting")
    }
    assert states == {"ok": 0, "below-floor": 1, "starting": 0}
    assert value("observation_age_seconds", pool="chat", kind="cloud", part="instances") == 3
    assert value("observation_age_seconds", pool="chat", kind="balancer", part="gw") == 0


def test_a_machine_that_nobody_of_ours_launched_is_counted_while_it_lives() -> None:
    stranger = machine("x9", token="somebody/else")
    ours = machine("n3", token="chat/1/77")  # launched by a daemon of this pool and not adopted yet
    anew(gauges.publish_pool, scene("s1", "s2", more=(stranger, ours)))
    assert value("pool_unknown_instances", pool="chat") == 1
    anew(
        gauges.publish_pool, scene("s1", "s2", more=(replace(stranger, state=InstanceState.TERMINATED), ours))
    )
    assert value("pool_unknown_instances", pool="chat") == 0


def test_the_oldest_call_without_effect_has_an_age() -> None:
    shown = scene("s1", "s2")
    opened = IntentOpened(at=NOW - 700.0, token="s1:terminate", kind=ActionKind.TERMINATE, node="s1")
    anew(gauges.publish_pool, replace(shown, memory=reduce(shown.memory, opened)))
    assert value("pool_open_calls", pool="chat", kind="terminate") == 1
    assert value("pool_oldest_open_call_seconds", pool="chat", kind="terminate") == 700
    anew(gauges.publish_pool, shown)
    assert value("pool_oldest_open_call_seconds", pool="chat", kind="terminate") == 0


def test_offerings_are_open_blocked_or_unavailable() -> None:
    shown = scene("s1", "s2")
    spot_a = Placement("sim", "r", "a", "gpu", Market.SPOT)
    refused = (
        IntentOpened(at=NOW - 5.0, token="chat/1/9", kind=ActionKind.LAUNCH, node="", placement=spot_a),
        IntentClosed(at=NOW - 4.0, token="chat/1/9", outcome=Outcome.REFUSED),
    )
    offerings = tuple(
        replace(o, available=o.placement.market is Market.SPOT) for o in shown.fleet.prices.on_sale
    )
    anew(
        gauges.publish_market,
        scene("s1", "s2", later=refused, offerings={"r": Observed(value=offerings, at=NOW)}),
    )

    def states(market: str) -> list[float | None]:
        return [
            value("market_offerings", pool="chat", market=market, state=s)
            for s in ("open", "blocked", "unavailable")
        ]

    assert states("spot") == [1, 1, 0]
    assert states("on-demand") == [0, 0, 2]
    assert value("pool_remembered_refusals", pool="chat") == 1
    assert value("market_price_usd_per_hour", pool="chat", market="spot", zone="b", instance_type="gpu") == 2


@pytest.mark.parametrize(("cap", "reached"), [(None, 0), (6.5, 0), (5.9, 1)])
def test_the_spend_cap_is_reached_when_not_even_the_cheapest_fits(cap: float | None, reached: int) -> None:
    pool = Pool(name="chat", replicas=2, limits=Limits(spend_per_hour=cap))
    anew(gauges.publish_money, scene("s1", "s2", pool=pool), Totals(usd=7.5, on_demand_usd=20.0))
    assert value("pool_spend_cap_reached", pool="chat") == reached
    assert value("pool_spend_cap_usd_per_hour", pool="chat") == cap
    assert value("pool_cost_usd_per_hour", pool="chat") == 4.0
    assert value("pool_on_demand_cost_usd_per_hour", pool="chat") == 10.0
    assert value("pool_spent_usd", pool="chat") == 7.5
    assert value("pool_saved_usd", pool="chat") == 12.5


def test_series_of_a_node_go_with_the_node() -> None:
    anew(gauges.publish_nodes, scene("s1", "s2"))
    assert value("engine_running_requests", pool="chat", node="s1") == 3
    assert value("engine_waiting_requests", pool="chat", node="s2") == 2
    labels = {"pool": "chat", "node": "s1", "market": "spot", "zone": "a", "instance_type": "gpu"}
    assert value("node_info", **labels) == 1
    anew(gauges.publish_nodes, scene("s2"))
    for name in ("engine_ready", "engine_running_requests", "engine_waiting_requests", "node_info"):
        assert series(name, node="s1") == []
        assert len(series(name, node="s2")) == 1


def test_a_balancer_that_shows_another_set_differs() -> None:
    shown = scene("s1", "s2")
    anew(gauges.publish_balancers, shown)
    assert value("balancer_differing_targets", pool="chat", balancer="gw") == 0
    assert value("balancer_targets", pool="chat", balancer="gw", state="healthy") == 2
    foreign = Target(id="old", address="old:1", state=TargetState.UNHEALTHY)
    draining = Target(id="s2", address="s2:1", state=TargetState.DRAINING)
    view = Observed(value=(shown.world.balancers["gw"].value[0], draining, foreign), at=NOW)
    anew(gauges.publish_balancers, replace(shown, world=replace(shown.world, balancers={"gw": view})))
    assert value("balancer_differing_targets", pool="chat", balancer="gw") == 2
    unread: Observed[tuple[Target, ...]] = Observed(value=())
    anew(gauges.publish_balancers, replace(shown, world=replace(shown.world, balancers={"gw": unread})))
    assert series("balancer_targets", balancer="gw") == []


def test_what_a_lost_balancer_showed_last_is_not_shown_as_its_state() -> None:
    """Else a dead gateway has healthy targets for ever, and no alert of them can fire."""
    shown = scene("s1", "s2")
    view = replace(shown.world.balancers["gw"], at=NOW - 60.0, error="dead", failing_since=NOW - 59.0)
    briefly = replace(view, at=NOW - 2.0, failing_since=NOW - 1.0)
    for seen, targets in ((view, 0), (briefly, 5)):
        anew(gauges.publish_balancers, replace(shown, world=replace(shown.world, balancers={"gw": seen})))
        assert len(series("balancer_targets", balancer="gw")) == targets
        assert len(series("balancer_differing_targets", balancer="gw")) == bool(targets)


def report(node: str, heard_at: float = NOW - 4.0) -> NodeReport:
    return NodeReport(
        node=node,
        heard_at=heard_at,
        life_cycle="spot",
        gpus=(),
        xids=(),
        metadata_error="",
        gpu_error="",
        xid_error="",
    )


def test_how_old_reports_are_is_shown_for_nodes_that_there_are() -> None:
    shown = scene("s1", "s2")
    anew(gauges.publish_reports, shown, {"s1": report("s1"), "forged": report("forged")})
    assert value("node_report_age_seconds", pool="chat", node="s1") == 4
    assert series("node_report_age_seconds", node="forged") == []


async def test_every_scrape_is_whole_and_no_more_series_come_as_nodes_do(tmp_path: Path) -> None:
    """Two readers at once; then a pool whose nodes are replaced fifty times over."""
    run = ran(scene("s1", "s2"))
    shown = Gauges(runs={"chat": run}, state_dir=tmp_path, clock_step=lambda: 0.0)
    first, *others = await asyncio.gather(*(shown.exposition() for _ in range(4)))
    assert all(text.count(b'node="s') == first.count(b'node="s') == 10 for text in others)
    size = len(first.splitlines())
    for number in range(0, 100, 2):
        run.last = scene(f"s{number}", f"s{number + 1}")
        text = await shown.exposition()
    assert len(text.splitlines()) == size
    assert b'node="s98"' in text
    assert b'node="s2"' not in text


# -- what Prometheus is told to scrape ------------------------------------------------------------------


def test_engines_that_can_serve_are_named_with_what_they_are() -> None:
    shown = scene("s2", "s1")
    assert scrape_targets(shown, None) == [
        {
            "targets": [f"{node}:1"],
            "labels": {"pool": "chat", "node": node, "market": "spot", "zone": "a", "instance_type": "gpu"},
        }
        for node in ("s1", "s2")
    ]


def test_an_exporter_is_looked_for_on_every_machine_that_runs() -> None:
    shown = scene("s1", "s2")
    booting = tuple(
        replace(m, state=InstanceState.PENDING, address="") if m.id == "s2" else m
        for m in shown.world.instances
    )
    fresh = {n: replace(r, ready_at=None, address="") for n, r in shown.memory.nodes.items()}
    memory = replace(shown.memory, nodes=fresh)
    world = replace(shown.world, regions={"": Observed(value=booting, at=NOW)}, engines={})
    shown = replace(shown, fleet=Fleet.of(shown.fleet.pool, world, memory))
    assert scrape_targets(shown, None) == [], "no engine was ready yet"
    assert [group["targets"] for group in scrape_targets(shown, 9400)] == [["s1:9400"]]


# -- counters -----------------------------------------------------------------------------------------


def test_every_way_a_call_ends_has_its_word(play: Play) -> None:
    faults: dict[str, BaseException] = {
        "error": CloudError(),
        "no-capacity": InsufficientCapacity(),
        "quota": QuotaExceeded(),
        "throttled": Throttled(),
        "not-found": NotFound(),
        "denied": Denied(),
        "misconfigured": Misconfigured(),
        "uncertain": Uncertain(),
        "late": TimeoutError(),
        "cut-off": asyncio.CancelledError(),
        "crashed": ZeroDivisionError(),
    }

    async def work(_: Any) -> None:
        with counted("words", "instances", "list"):
            pass
        for fault in faults.values():
            with pytest.raises(type(fault)), counted("words", "instances", "list"):
                raise fault

    assert {"ok", *faults} == set(OUTCOMES)
    play(work)
    labels = {"pool": "words", "port": "instances", "operation": "list"}
    assert {word: value("calls_total", **labels, outcome=word) for word in OUTCOMES} == dict.fromkeys(
        OUTCOMES, 1
    )
    assert value("call_seconds_count", **labels) == len(OUTCOMES)


def test_calls_of_aws_are_counted_by_operation() -> None:
    before = counted_so_far(
        "aws_calls_total", region="r", operation="ec2.describe_instances", outcome="throttled"
    )
    labels = {"operation": "ec2.describe_instances"}
    took = counted_so_far("aws_call_seconds_sum", **labels)
    aws_call_ended("r", "ec2.describe_instances", "throttled", 0.2)
    assert value("aws_call_seconds_sum", **labels) == pytest.approx(took + 0.2)
    assert (
        value("aws_calls_total", region="r", operation="ec2.describe_instances", outcome="throttled")
        == before + 1
    )


def test_tokens_are_counted_from_when_an_engine_was_first_seen() -> None:
    counters, world = PoolCounters("tokens"), scene("s1").world

    def see(**progress: float) -> None:
        readings = {
            n: EngineReading(node=n, at=NOW, ready=True, ok=True, progress=p) for n, p in progress.items()
        }
        counters.tokens(replace(world, engines=readings))

    see(a=1_000.0)  # generated before this daemon began
    assert value("pool_generated_tokens_total", pool="tokens") == 0
    see(a=1_050.0, b=0.0)
    see(a=1_050.0, b=30.0)
    assert value("pool_generated_tokens_total", pool="tokens") == 80
    see(a=20.0)  # its engine was restarted, the other is gone
    assert value("pool_generated_tokens_total", pool="tokens") == 100


def test_a_replacement_that_does_not_come_is_a_failure_and_another_one_is_none() -> None:
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)

    def opened(token: str) -> IntentOpened:
        return IntentOpened(
            at=NOW, token=token, kind=ActionKind.LAUNCH, node="", placement=place, replaces="s1"
        )

    counters, memory = PoolCounters("fails"), lost("s1")
    history = [
        opened("chat/1/5"),
        IntentClosed(at=NOW + 1, token="chat/1/5", outcome=Outcome.REFUSED),
        opened("chat/1/6"),
        NodeSeen(
            at=NOW + 3,
            node="n6",
            token="chat/1/6",
            placement=place,
            launched_at=NOW + 2,
            price=2.0,
            address="n6:1",
            standby=None,
        ),
        NodeReady(at=NOW + 42.0, node="n6", address="n6:1"),
    ]
    failures = []
    for event in history:
        after = reduce(memory, event)
        counters.events([event], memory, after)
        memory = after
        failures.append(value("swap_failures_total", pool="fails"))
    assert failures == [0, 1, 1, 1, 1]
    assert value("swap_seconds_count", pool="fails", stage="replaced") == 1
    assert value("swap_seconds_sum", pool="fails", stage="replaced") == pytest.approx(42.0)


def lost(node: str) -> Memory:
    """A memory in which a spot node went away without notice at NOW."""
    return reduce(scene(node).memory, NodeGone(at=NOW, node=node, cause=GoneCause.UNANNOUNCED))


# -- the whole daemon ---------------------------------------------------------------------------------


def test_a_daemon_that_swaps_a_node_shows_all_of_it(tmp_path: Path, quiet: None) -> None:
    config = build_config(
        {"daemon": {"state_dir": "state", "listen": "off"}, "pool": {"swap": {"replicas": 4}}}, base=tmp_path
    )
    sales = [
        Sale(placement=Placement("sim", "r", zone, "gpu", market), price=1.0 + number, capacity=9)
        for number, market in enumerate(Market)
        for zone in "ab"
    ]
    sim = Simulation(config, sales=sales, pace=Pace(boot=(1.0, 2.0), load=(1.0, 2.0), list_lag=(0.1, 0.2)))
    seen: dict[str, list[str]] = {}

    async def script(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.settle()
        daemon = process.daemon
        shown = Gauges(runs=daemon.runs, state_dir=config.daemon.state_dir, clock_step=lambda: 0.0)
        shown.publish()
        leaving = sim.live(Market.SPOT)[0].id
        seen["before"] = series("node_info", pool="swap", node=leaving)
        sim.board.reclaim(leaving, after=30.0, notice=30.0)
        await sim.settle()
        shown.publish()
        seen["after"] = series("node_info", pool="swap", node=leaving)
        await sim.stop(process)

    outcome = sim.run(script)
    assert outcome.broken == ()
    assert (len(seen["before"]), seen["after"]) == (1, [])
    pool = {"pool": "swap"}
    assert value("notices_total", **pool, kind="interruption", source="sim-queue") == 1
    assert value("notice_lead_seconds_sum", **pool, source="sim-queue") == pytest.approx(30.0, abs=1.0)
    for stage in ("detached", "drained", "replaced"):
        assert value("swap_seconds_count", **pool, stage=stage) == 1
    assert value("preemptions_total", **pool, noticed="yes") == 1
    assert value("pool_state", **pool, state="ok") == 1
    assert value("pool_open_swaps", **pool, stage="drained") == 0
    assert value("swap_failures_total", **pool) == 0
    assert counted_so_far("calls_total", **pool, port="instances", operation="list", outcome="ok") > 5
    assert counted_so_far("calls_total", **pool, port="instances", operation="launch", outcome="ok") >= 1
    assert counted_so_far("loop_lag_seconds_count", **pool) > 0
    assert counted_so_far("journal_size_bytes") > 0
    assert counted_so_far("state_dir_free_bytes") > 0
    assert value("notice_source_age_seconds", pool="swap", source="sim-queue") == 0
    assert len(series("calls_total", pool="swap")) < 200, "labels are bounded"


def test_the_clock_tells_that_the_systems_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import cloud.clock

    clock = SystemClock()
    assert clock.step() == pytest.approx(0.0, abs=1.0)
    real, before = cloud.clock.time.time, clock.now()
    monkeypatch.setattr(cloud.clock.time, "time", lambda: real() + 86_400.0)
    assert clock.step() == pytest.approx(86_400.0, abs=1.0)
    assert clock.now() - before < 1_000.0, "deadlines that are counted do not move"


def blind(*, at: float | None, known_since: float | None = None) -> dict[str, Any]:
    """Prices of spot that cannot be read, the last time `at`; remembered from `known_since` on."""
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)
    sold = (Offering(placement=place, price=2.0 if at is not None else None),)
    noted = () if known_since is None else (PricesRead(at=known_since, part="r", prices=((place, 2.0),)),)
    return {"offerings": {"r": Observed(value=sold, at=at, error="denied")}, "later": noted}


@pytest.mark.parametrize(
    ("prices", "age"),
    [
        (blind(at=NOW - 70.0), 70.0),
        (blind(at=None, known_since=NOW - 7200.0), 7200.0),  # over a restart
        (blind(at=None), math.inf),
    ],
)
def test_prices_that_cannot_be_read_have_an_age(prices: dict[str, Any], age: float) -> None:
    anew(gauges.publish_market, scene("s1", "s2", **prices))
    assert value("prices_age_seconds", pool="chat", part="r") == age


def test_money_that_is_not_known_is_no_number() -> None:
    shown = scene("s1", "s2", **blind(at=None))
    dear = tuple(replace(n, price=None) for n in shown.fleet.nodes)
    anew(gauges.publish_money, replace(shown, fleet=replace(shown.fleet, nodes=dear)), Totals())
    for name in ("pool_cost_usd_per_hour", "pool_on_demand_cost_usd_per_hour"):
        assert math.isnan(value(name, pool="chat") or 0.0)


# -- boots that fail ------------------------------------------------------------------------------


def refused(number: int, market: Market, region: str, outcome: Outcome) -> tuple[Any, ...]:
    token, placement = f"chat/1/{number}", Placement("sim", region, "a", "gpu", market)
    opened = IntentOpened(at=4_990.0, token=token, kind=ActionKind.LAUNCH, node="", placement=placement)
    return opened, IntentClosed(at=4_991.0, token=token, outcome=outcome, detail="not authorised")


def test_a_market_where_launches_are_denied_has_a_series_until_it_is_mended() -> None:
    spot = refused(1, Market.SPOT, "r", Outcome.DENIED)
    denied = (*spot, *refused(2, Market.ON_DEMAND, "r", Outcome.REFUSED))
    anew(gauges.publish_market, scene("s1", later=denied))
    assert series("pool_market_paused") == [
        'orchestrator_pool_market_paused{market="spot",pool="chat",region="r"} 1.0'
    ]
    anew(gauges.publish_market, scene("s1", later=(*denied, Resumed(at=4_995.0, by="me"))))
    assert series("pool_market_paused") == []


def test_failed_boots_are_counted_once_each() -> None:
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)
    failed = [BootFailed(at=1.0, node=f"i-{n}", placement=place, why="w") for n in range(3)]
    counters, memory = PoolCounters("boots"), Memory()
    before = counted_so_far("boots_failed_total", pool="boots", market="spot")
    for event in (*failed, failed[-1]):  # told again, as after a start
        after = reduce(memory, event)
        counters.events([event], memory, after)
        memory = after
    assert counted_so_far("boots_failed_total", pool="boots", market="spot") - before == 3
    assert value("boots_failed_total", pool="boots", market="on-demand") == 0, "a rate needs a first value"
