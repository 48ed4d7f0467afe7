"""The last turn as people and programs see it, and what `explain` answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from orchestrator.api import status
from orchestrator.api.explaining import explanation, policy_names, policy_text
from orchestrator.journal.codec import encode
from orchestrator.journal.store import StoredEvent, Totals
from orchestrator.loop.loop import Snapshot
from policies.actions import ActionKind, Cause
from policies.decide import decide
from policies.events import (
    BootFailed,
    DrainStarted,
    Event,
    IntentClosed,
    IntentOpened,
    NodeReady,
    NodeSeen,
    NoticeSeen,
    Outcome,
    Paused,
    PoolConfigured,
    PoolWhole,
    PricesRead,
    Resumed,
    TargetsApplied,
)
from policies.fleet import Fleet
from policies.memory import replay
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Limits,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Placement,
    Pool,
    StandbyKind,
    StandbyRules,
    Target,
    TargetPhase,
    TargetState,
    World,
)
from policies.service import Service, ShownCertificate
from policies.value import replace

NOW = 10_000.0
SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND


def place(market: Market, zone: str = "a") -> Placement:
    return Placement("sim", "r1", zone, "gpu", market)


class Scene:
    """A pool at one instant; nodes are ready and serve unless told otherwise."""

    def __init__(self, replicas: int = 4, **pool: Any) -> None:
        self.pool = Pool(name="chat", model="llama", replicas=replicas, **pool)
        self.events: list[Event] = [PoolConfigured(at=1.0, replicas=replicas)]
        self.instances: list[Instance] = []
        self.engines: dict[str, EngineReading] = {}
        self.targets: list[Target] = []
        self.settings: dict[str, Any] = {}
        self.later: list[Event] = []

    def node(
        self,
        node: str,
        market: Market = SPOT,
        *,
        ready: bool = True,
        probed: bool = True,
        silent_for: float | None = None,
        state: InstanceState = InstanceState.RUNNING,
        standby: StandbyKind | None = None,
        running: int = 0,
    ) -> Scene:
        price = 1.0 if market is SPOT else 3.0
        self.events.append(
            NodeSeen(
                at=9_000.0,
                node=node,
                token=f"t-{node}",
                placement=place(market),
                launched_at=9_000.0,
                price=price,
                address=f"{node}:1",
                standby=standby,
            )
        )
        if ready:
            self.events.append(NodeReady(at=9_060.0, node=node, address=f"{node}:1"))
            self.targets.append(
                Target(id=node, address=f"{node}:1", state=TargetState.HEALTHY, in_flight=running)
            )
        self.instances.append(
            Instance(
                id=node,
                pool="chat",
                token=f"t-{node}",
                placement=place(market),
                state=state,
                address=f"{node}:1",
                launched_at=9_000.0,
                price=price,
            )
        )
        if probed and state is InstanceState.RUNNING:
            ok = ready and silent_for is None
            self.engines[node] = EngineReading(
                node=node,
                at=NOW,
                ready=ready,
                ok=ok,
                failing_since=None if ok else NOW - (silent_for or 1.0),
                running=running,
                failure="" if ok else "connection refused",
            )
        return self

    def settled(self, **more: Any) -> Scene:
        for node in ("s1", "s2"):
            self.node(node, **more)
        for node in ("o1", "o2"):
            self.node(node, ON_DEMAND, **more)
        return self

    def notice(self, node: str, lead: float = 60.0, **more: Any) -> Scene:
        said = Notice(
            **{
                "id": f"n-{node}",
                "kind": NoticeKind.INTERRUPTION,
                "node": node,
                "deadline": NOW + lead,
                "source": "feed",
                "confidence": Confidence.CONFIRMED,
                "seen_at": NOW - 9.0,
                **more,
            }
        )
        self.later.append(NoticeSeen(at=NOW - 9.0, notice=said))
        return self

    def snapshot(self, *, whole: bool = True) -> Snapshot:
        held = tuple((t.id, TargetPhase.ACTIVE) for t in self.targets)
        history = [*self.events, TargetsApplied(at=9_100.0, balancer="gw", generation=1, changes=held)]
        if whole:
            history.append(PoolWhole(at=9_100.0))
        memory = replay([*history, *self.later])
        world = World(
            **{
                "now": NOW,
                "regions": {"": Observed(value=tuple(self.instances), at=NOW)},
                "engines": self.engines,
                "balancers": {"gw": Observed(value=tuple(self.targets), at=NOW)},
                "offerings": {
                    f"r {m}": Observed(
                        value=tuple(
                            Offering(placement=place(m, z), price=1.0 if m is SPOT else 3.0) for z in "ab"
                        ),
                        at=NOW,
                    )
                    for m in Market
                },
                **self.settings,
            }
        )
        fleet = Fleet.of(self.pool, world, memory)
        return Snapshot(
            fleet=fleet, world=world, memory=memory, plan=decide(self.pool, world, memory), at=NOW
        )


def dots(value: Any) -> Any:
    """JSON with attributes, for readable tests; it must be JSON."""
    return json.loads(orjson.dumps(value), object_hook=lambda found: SimpleNamespace(**found))


def pool_view(scene: Scene, totals: Totals | None = None, *, whole: bool = True) -> Any:
    return dots(status.pool_view(scene.snapshot(whole=whole), totals or Totals()))


def paused(scene: Scene) -> None:
    scene.later.append(Paused(at=9_500.0, by="ann", reason="test", until=None))


def blind(scene: Scene) -> None:
    scene.settings["regions"] = {"": Observed(value=tuple(scene.instances), at=NOW - 100.0, error="denied")}


@pytest.mark.parametrize(
    ("change", "whole", "state"),
    [
        (lambda s: s.settled(), True, "ok"),
        (lambda s: s.settled().notice("s1"), True, "degraded"),
        (lambda s: s.settled().notice("s1").notice("s2"), True, "below-floor"),
        (lambda s: s.settled().notice("o1", kind=NoticeKind.MAINTENANCE), True, "below-floor"),
        (lambda s: s.node("s1").node("o1", ON_DEMAND, ready=False), False, "starting"),
        (lambda s: s.settled(probed=False), True, "starting"),
        (lambda s: paused(s.settled()), True, "paused"),
        (lambda s: s.settled().settings.update(durable=False), True, "degraded"),
        (lambda s: s.settled().settings.update(leading=False, failsafe_since=NOW - 40.0), True, "degraded"),
        (lambda s: blind(s.settled()), True, "degraded"),
        (lambda s: None, True, "down"),
        (lambda s: None, False, "starting"),
    ],
)
def test_a_pool_is_one_word(change: Callable[[Scene], Any], whole: bool, state: str) -> None:
    scene = Scene()
    change(scene)
    assert status.pool_state(scene.snapshot(whole=whole)) == state


def gateway(
    scene: Scene, *, age: float = 0.0, error: str = "", paused_too: bool = False, **says: Any
) -> None:
    """The gateway, last heard of `age` seconds ago, and what it says of itself."""
    shown = says.pop("shown", tuple(scene.targets))
    scene.settings["balancers"] = {"gw": Observed(value=shown, at=NOW - age, error=error)}
    scene.settings["services"] = {"gw": Service(in_path=True, **says)}
    if paused_too:
        paused(scene)


def every(scene: Scene, state: TargetState) -> tuple[Target, ...]:
    return tuple(replace(t, state=state) for t in scene.targets)


@pytest.mark.parametrize(
    ("change", "state", "serving", "targets", "problem"),
    [
        (lambda s: gateway(s, age=3.0, error="refused"), "ok", 4, "healthy", "gw cannot be read: refused"),
        (
            lambda s: gateway(s, age=7.0, error="refused"),
            "down",
            0,
            "unknown",
            "gw has not answered for 7 s: no request gets through (refused)",
        ),
        (lambda s: gateway(s, age=7.0, paused_too=True), "down", 0, "unknown", "gw has not answered"),
        (lambda s: gateway(s, shown=(), bare_since=NOW - 60.0), "down", 0, None, "gw has no usable target"),
        (lambda s: gateway(s, shown=(), bare_since=NOW - 1.0), "degraded", 0, None, ""),
        (
            lambda s: gateway(s, shown=every(s, TargetState.UNHEALTHY), bare_since=NOW - 9.0),
            "down",
            0,
            "unhealthy",
            "gw has no usable target",
        ),
        (lambda s: gateway(s, shown=every(s, TargetState.INITIAL)), "ok", 4, "initial", ""),
        (lambda s: gateway(s, shown=tuple(s.targets[:1])), "degraded", 1, None, ""),
        (
            lambda s: gateway(s, shown=(replace(s.targets[0], id="stranger"),)),
            "down",
            0,
            None,
            "gw has no usable target",
        ),
        (
            lambda s: gateway(s, refuses="connection refused"),
            "down",
            0,
            "healthy",
            "gw lets no client in: connection refused",
        ),
        (lambda s: gateway(s, refuses="too slow", answered=1), "degraded", 4, "healthy", "gw lets no client"),
        (
            lambda s: gateway(s, failed=9),
            "down",
            0,
            "healthy",
            "gw refused or failed 9 of the last 9 requests",
        ),
        (lambda s: gateway(s, failed=9, held=20), "degraded", 4, "healthy", "gw refused or failed 9 of"),
        (lambda s: gateway(s, failed=9, answered=91), "degraded", 4, "healthy", "9 of the last 100"),
        (lambda s: gateway(s, failed=9, answered=991), "ok", 4, "healthy", ""),
        (lambda s: gateway(s, failed=4), "ok", 4, "healthy", ""),
    ],
)
def test_a_pool_is_judged_by_what_clients_get(
    change: Callable[[Scene], Any], state: str, serving: int, targets: str | None, problem: str
) -> None:
    scene = Scene().settled()
    change(scene)
    view = pool_view(scene)
    assert (view.state, view.serving, view.ready) == (state, serving, 4)
    assert view.nodes[0].target == targets
    assert any(problem in said for said in view.problems) if problem else view.problems == []


def test_a_set_that_was_written_since_the_last_look_counts() -> None:
    """Else each node that comes in would be missing for as long as a look lasts."""
    scene = Scene().settled()
    gateway(scene, shown=tuple(scene.targets[:3]), age=1.0)
    scene.later.append(TargetsApplied(at=NOW - 0.5, balancer="gw", generation=2, changes=()))
    assert pool_view(scene).serving == 4
    gateway(scene, shown=(), age=1.0, bare_since=NOW - 30.0)  # it takes sets, and never holds any
    assert pool_view(scene).state == "down"


def test_the_first_set_counts_before_anybody_has_looked_at_it() -> None:
    """Else each pool that starts is down for a moment, and pages."""
    scene = Scene().settled()
    targets, scene.targets = tuple(scene.targets), []
    held = tuple((t.id, TargetPhase.ACTIVE) for t in targets)
    scene.later.append(TargetsApplied(at=NOW - 0.5, balancer="gw", generation=2, changes=held))
    gateway(scene, shown=(), age=1.0, bare_since=NOW - 30.0)
    assert (pool_view(scene).state, pool_view(scene).serving) == ("ok", 4)


def test_a_balancer_that_is_asked_to_hold_nobody_is_given_no_time() -> None:
    """The whole cloud is gone at once: the pool is down, also once the gateway shows its empty set."""
    scene = Scene().settled(ready=False)
    for age, bare_since in ((0.5, None), (0.0, NOW)):
        gateway(scene, shown=(), age=age, bare_since=bare_since)
        assert (pool_view(scene).state, pool_view(scene).serving) == ("down", 0)


@pytest.mark.parametrize(("ago", "state"), [(9.0, "starting"), (11.0, "down")])
def test_what_was_refused_before_the_first_target_says_nothing_of_it(ago: float, state: str) -> None:
    """Clients wait for a pool that starts: its first node is no outage."""
    scene = Scene().node("o1", ON_DEMAND).node("o2", ON_DEMAND, ready=False)
    targets, scene.targets = tuple(scene.targets), []
    taken = ((targets[0].id, TargetPhase.ACTIVE),)
    scene.later.append(TargetsApplied(at=NOW - ago, balancer="gw", generation=2, changes=taken))
    gateway(scene, shown=targets, failed=9)
    assert status.pool_state(scene.snapshot(whole=False)) == state


def test_a_target_that_was_taken_and_never_seen_is_unknown_too() -> None:
    scene = Scene().settled()
    gateway(scene, shown=(), age=7.0, error="refused")
    assert {n.target for n in pool_view(scene).nodes} == {"unknown"}


def test_a_pool_that_never_served_starts() -> None:
    scene = Scene().settled()
    scene.targets = []
    gateway(scene, age=60.0, error="no such file")
    assert status.pool_state(scene.snapshot(whole=False)) == "starting"
    assert status.pool_state(scene.snapshot()) == "down", "every node is ready, and nobody lets clients in"


@pytest.mark.parametrize(("ago", "state"), [(0.0, "starting"), (2.9, "starting"), (3.1, "degraded")])
def test_a_pool_whose_last_nodes_are_not_yet_in_the_balancer_starts(ago: float, state: str) -> None:
    """They become ready in one turn and targets in the next: a start that goes well is never degraded."""
    scene = Scene().settled()
    scene.targets = scene.targets[:2]
    scene.later.append(PoolWhole(at=NOW - ago))
    assert status.pool_state(scene.snapshot(whole=False)) == state


def test_a_balancer_that_is_only_described_by_what_cannot_be_read_serves_on() -> None:
    """An API that is away is not an outage of the balancer; yet nothing is known of its targets."""
    scene = Scene().settled()
    scene.settings["balancers"] = {"alb": Observed(value=tuple(scene.targets), at=NOW - 31.0, error="503")}
    scene.events.append(
        TargetsApplied(
            at=9_050.0,
            balancer="alb",
            generation=1,
            changes=tuple((t.id, TargetPhase.ACTIVE) for t in scene.targets),
        )
    )
    view = pool_view(scene)
    assert (view.state, view.serving, view.nodes[0].target) == ("degraded", 4, "unknown")
    assert "alb has not answered for 31 s: it is not known who serves (503)" in view.problems
    scene.settings["balancers"] = {"alb": Observed(value=tuple(scene.targets), at=NOW - 29.0, error="503")}
    assert pool_view(scene).state == "ok"


@pytest.mark.parametrize(
    ("days", "fault", "problems"),
    [
        (30, "", []),
        (9, "", ["the certificate that gw shows expires in 9d; renew it"]),
        (-1, "", ["the certificate that gw shows expired 1d ago: clients refuse it; renew it"]),
        (30, "half of it", ["gw does not show its newest certificate: half of it"]),
    ],
)
def test_a_certificate_that_ends_is_a_problem_of_its_own(days: int, fault: str, problems: list[str]) -> None:
    scene = Scene().settled()
    gateway(scene, certificate=ShownCertificate(expires=NOW + days * 86_400.0, fault=fault))
    view = pool_view(scene)
    assert (view.state, [each for each in view.problems if "certificate" in each]) == ("ok", problems)


def test_one_of_two_balancers_is_lost() -> None:
    scene = Scene().settled()
    gateway(scene)
    dead = Observed(value=tuple(scene.targets), at=NOW - 9.0, error="refused")
    scene.settings["balancers"]["other"] = dead
    scene.settings["services"]["other"] = Service(in_path=True)
    assert (pool_view(scene).state, pool_view(scene).serving) == ("degraded", 4)
    scene.settings["balancers"]["gw"] = dead
    assert pool_view(scene).state == "down"


def test_silence_counts_from_when_the_daemon_woke_up() -> None:
    scene = Scene().settled()
    scene.settings["awake_since"] = NOW - 2.0
    gateway(scene, age=500.0)
    assert pool_view(scene).state == "ok"
    scene.settings["balancers"] = {"gw": Observed(value=(), error="refused")}
    assert pool_view(scene).state == "starting", "nobody has looked yet"
    scene.settings["awake_since"] = NOW - 7.0
    assert pool_view(scene).state == "down"


def test_a_pool_without_a_balancer_is_served_by_its_ready_nodes() -> None:
    scene = Scene().settled()
    scene.settings["balancers"] = {}
    view = pool_view(scene)
    assert (view.state, view.serving) == ("ok", 4)


def refused(scene: Scene, zone: str, *, ago: float, outcome: Outcome = Outcome.REFUSED) -> None:
    """A launch on spot was refused in a zone."""
    token = f"t-{zone}-{ago}"
    opened = IntentOpened(
        at=NOW - ago, token=token, kind=ActionKind.LAUNCH, node="", placement=place(SPOT, zone), price=1.0
    )
    scene.later += [opened, IntentClosed(at=NOW - ago, token=token, outcome=outcome)]


def all_on_demand(**pool: Any) -> Scene:
    scene = Scene(**pool)
    for i in range(scene.pool.replicas):
        scene.node(f"o{i}", ON_DEMAND)
    return scene


def test_all_on_demand_since_spot_is_refused_is_a_state_of_its_own() -> None:
    scene = all_on_demand()
    refused(scene, "a", ago=2_000.0)
    refused(scene, "b", ago=130.0)
    refused(scene, "a", ago=120.0)
    view = pool_view(scene)
    assert (view.state, view.serving, view.spot_lost_at) == ("all-on-demand", 4, NOW - 2_000.0)
    # "b" is first: its refusal weighs half after 180 s, and has to be 300 s old
    assert view.spot_next_try_s == pytest.approx(170.0)
    assert view.problems == [
        "no spot nodes ready for 33m20s, spot cannot be had: all on demand; next try in 2m50s"
    ]
    paused(scene)
    assert pool_view(scene).state == "paused"
    assert pool_view(scene).problems[0].endswith("all on demand; no try while paused")


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        (lambda s: refused(s, "b", ago=10.0), "all-on-demand", "next try in 4m50s"),
        (lambda s: None, "ok", ""),  # zone b was never tried
        (lambda s: refused(s, "b", ago=299.0), "all-on-demand", "next try in 1s"),
        (lambda s: refused(s, "b", ago=310.0), "all-on-demand", "next try now"),
        (lambda s: refused(s, "b", ago=700.0), "ok", ""),  # too long ago to say anything
        (lambda s: refused(s, "b", ago=10.0, outcome=Outcome.QUOTA), "all-on-demand", "next try in 4m55s"),
        (lambda s: refused(s.node("s1"), "b", ago=10.0), "ok", ""),  # one is left
        (
            lambda s: refused(s.node("s1", ready=False), "b", ago=10.0),
            "all-on-demand",
            "all on demand; 1 node on the way",
        ),
        (lambda s: refused(s.notice("o1", kind=NoticeKind.MAINTENANCE), "b", ago=10.0), "degraded", "spot c"),
    ],
)
def test_spot_is_lost_when_none_of_it_can_be_had(
    change: Callable[[Scene], Any], state: str, said: str
) -> None:
    scene = all_on_demand()
    refused(scene, "a", ago=5.0)
    change(scene)
    view = pool_view(scene)
    assert view.state == state
    assert any(said in problem for problem in view.problems) if said else view.problems == []


def test_a_pool_that_wants_no_spot_has_lost_none() -> None:
    scene = all_on_demand(spot_share=0.0)
    refused(scene, "a", ago=5.0)
    refused(scene, "b", ago=5.0)
    assert pool_view(scene).state == "ok"


def test_nearly_no_spot_is_lost_too() -> None:
    scene = Scene(30)
    for i in range(28):
        scene.node(f"o{i:02}", ON_DEMAND)
    scene.node("s1").node("s2")
    refused(scene, "a", ago=5.0)
    refused(scene, "b", ago=5.0)
    view = pool_view(scene)
    assert (view.state, view.spot_lost_at) == ("all-on-demand", None)
    assert view.problems == [
        "2 of 21 spot nodes ready, spot cannot be had: on-demand stands in; next try in 4m55s"
    ]


def test_spot_that_is_not_for_sale_has_no_next_try() -> None:
    scene = all_on_demand()
    gone = Offering(placement=place(SPOT), price=1.0, available=False)
    scene.settings["offerings"] = {"all": Observed(value=(gone,), at=NOW)}
    view = pool_view(scene)
    assert (view.state, view.spot_next_try_s) == ("all-on-demand", None)
    assert view.problems[0].endswith("all on demand; next try once it is offered again")
    scene.settings["offerings"] = {"all": Observed(value=())}
    assert pool_view(scene).state == "ok", "nobody has looked at what is for sale"


def test_one_pool_in_numbers() -> None:
    scene = Scene(10, standby=StandbyRules(hot=1, stopped=1))
    for i in range(6):
        scene.node(f"s{i}", running=2)
    for i in range(5):
        scene.node(f"o{i}", ON_DEMAND)
    scene.node("sb", ON_DEMAND, ready=False, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED)
    view = pool_view(scene, Totals(usd=5.0, on_demand_usd=8.0))
    assert (view.name, view.model, view.wanted, view.ready, view.serving) == ("chat", "llama", 10, 11, 11)
    assert (view.spot_ready, view.on_demand_ready, view.spot_wanted, view.on_demand_floor) == (6, 5, 7, 3)
    assert view.spot_share == pytest.approx(6 / 11)
    assert (view.temporary_on_demand, view.standby_hot, view.standby_stopped) == (1, 1, 1)
    assert (view.cost_per_hour, view.on_demand_cost_per_hour) == (21.0, 30.0)
    assert view.spend_cap_per_hour is None
    assert view.saved_share == pytest.approx(0.3)
    assert (view.spent_usd, view.saved_usd) == (5.0, 3.0)
    assert view.state == "ok"
    assert view.problems == []
    assert len(view.nodes) == 12
    assert view.notes[0].startswith("10 nodes are wanted")


def test_a_node_is_shown_with_its_reason() -> None:
    snapshot = Scene().settled(running=3).notice("s1", 84.0).snapshot()
    node = dots(status.node_view(snapshot, snapshot.fleet.by_id["s1"]))
    assert (node.id, node.market, node.zone, node.phase) == ("s1", "spot", "a", "ready")
    assert (node.in_flight, node.running, node.target, node.attached) == (3, 3, "healthy", True)
    assert node.conditions == ["noticed", "attached"]
    assert node.why.startswith("interruption notice (feed), reclaim in 84 s")
    assert node.age_s == 1000.0


def test_a_node_is_shown_with_what_it_runs_and_who_finishes_its_answers() -> None:
    scene = Scene().settled()
    said = {"s1": ("derender", ""), "s2": ("none", "no ids")}
    shown = [
        replace(t, continues=said[t.id][0], continues_why=said[t.id][1]) if t.id in said else t
        for t in scene.targets
    ]
    gateway(scene, shown=tuple(shown))
    snapshot = scene.snapshot()
    found = {n.id: status.node_view(snapshot, n)["continuation"] for n in snapshot.fleet.nodes}
    assert found.pop("s1") == {"way": "derender", "why": ""}
    assert found.pop("s2") == {"way": "none", "why": "no ids"}
    assert set(found.values()) == {None}


def test_a_notice_is_shown_with_its_countdown_and_its_swap() -> None:
    scene = Scene().settled().notice("s1", 84.0)
    scene.later += [
        DrainStarted(at=NOW - 8.0, node="s1", deadline=NOW + 79.0, cause=Cause.NOTICE, reason="notice"),
        IntentOpened(at=NOW - 8.0, token="t-o3", kind=ActionKind.LAUNCH, node="", replaces="s1"),
    ]
    scene.later.append(
        NodeSeen(
            at=NOW - 5.0,
            node="o3",
            token="t-o3",
            placement=place(ON_DEMAND),
            launched_at=NOW - 8.0,
            price=3.0,
            address="",
            standby=None,
        )
    )
    view = pool_view(scene)
    (notice,) = view.notices
    assert (notice.node, notice.kind, notice.source, notice.confidence) == (
        "s1",
        "interruption",
        "feed",
        "confirmed",
    )
    assert notice.remaining_s == pytest.approx(84.0)
    assert (notice.stage, notice.replacement, notice.replacement_phase) == ("noticed", "o3", "starting")
    assert notice.text == "interruption notice 9 s ago: noticed, 0 requests left, replacement o3 starting"
    (swap,) = view.swaps
    assert (swap.outgoing, swap.incoming, swap.cause, swap.noticed_at) == ("s1", "o3", "notice", NOW - 9.0)


def test_a_notice_that_is_not_believed_says_so_until_its_time_is_over() -> None:
    def notices(lead: float) -> list[str]:
        scene = Scene().settled().notice("o1", lead)  # spot interruptions do not concern on-demand nodes
        return [n.stage for n in pool_view(scene).notices]

    assert notices(60.0) == ["not believed"]
    assert notices(-60.0) == []


def test_an_empty_gateway_is_no_problem_before_anything_is_ready() -> None:
    scene = Scene().node("s1", ready=False)
    gateway(scene, bare_since=NOW - 60.0)
    found = pool_view(scene, whole=False)
    assert found.state == "starting"
    assert "gw has no usable target" not in found.problems
    up = Scene().node("s1")
    gateway(up, shown=(), bare_since=NOW - 60.0)
    assert "gw has no usable target" in pool_view(up, whole=False).problems


def test_problems_are_said() -> None:
    scene = Scene().settled(silent_for=60.0)
    scene.settings.update(durable=False, leading=False)
    blind(scene)
    scene.settings["balancers"] = {"gw": Observed(value=(), at=NOW, error="refused")}
    problems = pool_view(scene).problems
    assert problems[:5] == [
        "gw has no usable target",
        "this daemon does not hold the lease: it only watches",
        "the journal cannot be written: nothing is launched or ended until it can",
        "instances cannot be listed: denied",
        "gw cannot be read: refused",
    ]
    assert any(p.startswith("4 of 4 nodes are silent") for p in problems)
    assert problems[-2:] == [
        "only 0 nodes are ready, fewer than the 3 that drain.min_serving asks for",
        "2 on-demand nodes are missing below the floor of 2",
    ]
    one = Scene().node("s1").node("s2").node("s3").node("o1", ON_DEMAND)
    assert pool_view(one).problems == ["1 on-demand node is missing below the floor of 2"]
    assert pool_view(Scene().settled(probed=False)).problems == [], "nobody has looked at the engines yet"


def two_regions(scene: Scene, **west: Any) -> Scene:
    """The machines are in two regions, and the west has been away for a while."""
    in_west = {n: i for n, i in enumerate(scene.instances) if i.id in ("s2", "o2")}
    scene.events = [
        replace(e, placement=replace(e.placement, region="west"))
        if isinstance(e, NodeSeen) and e.node in ("s2", "o2")
        else e
        for e in scene.events
    ]
    east = tuple(i for n, i in enumerate(scene.instances) if n not in in_west)
    view = {"value": tuple(in_west.values()), "at": NOW - 100.0, "error": "503", "failing_since": NOW - 95.0}
    scene.settings["regions"] = {
        "r1": Observed(value=east, at=NOW - 1.0),
        "west": Observed(**{**view, **west}),
    }
    return scene


def test_a_region_that_cannot_be_listed_is_a_problem_of_its_own() -> None:
    view = pool_view(two_regions(Scene().settled()))
    assert view.state == "degraded"  # what is lost there could not be replaced there
    assert view.problems == [
        "west cannot be listed for 95 s: 503; its 2 nodes stay as they are, other regions go on"
    ]
    why = "The last complete list of west is 100 s old: 503"
    assert f"{why}: nothing is launched or ended there meanwhile." in view.notes
    assert pool_view(two_regions(Scene().settled(), at=NOW, error="", failing_since=None)).state == "ok"


def test_a_new_pool_says_for_how_long_it_waits_for_a_region() -> None:
    scene = Scene()
    scene.settings["regions"] = {
        "r1": Observed(value=(), at=NOW - 1.0),
        "west": Observed(value=(), error="503", failing_since=NOW - 30.0),
    }
    view = pool_view(scene)
    assert "west cannot be listed for 30 s: 503; all other regions wait for it for 90 s more" in view.problems
    scene.settings["regions"]["west"] = Observed(value=(), error="503", failing_since=NOW - 130.0)
    assert "west cannot be listed for 130 s: 503; other regions go on" in pool_view(scene).problems


def test_nodes_of_a_region_that_was_taken_out_of_the_configuration_are_a_problem() -> None:
    scene = two_regions(Scene().settled())
    del scene.settings["regions"]["west"]
    (problem,) = pool_view(scene).problems
    assert problem.startswith(
        "west is not configured any more and has 2 nodes, which this daemon can neither"
    )


def test_a_cap_that_cannot_hold_the_floor_is_a_problem_once_prices_are_known() -> None:
    scene = Scene(limits=Limits(spend_per_hour=5.0)).settled()
    assert pool_view(scene).spend_cap_per_hour == 5.0
    (problem,) = pool_view(scene).problems
    assert problem == (
        "limits.spend_per_hour: $5.00 an hour is less than the on-demand floor of 2 nodes costs, $6.00 at "
        "$3.00 each"
    )
    scene.settings["offerings"] = {}
    assert pool_view(scene).problems == []


def test_beyond_the_lease_one_sentence_says_what_is_done_and_what_is_not() -> None:
    scene = Scene().settled()
    scene.settings.update(durable=False, leading=False, failsafe_since=NOW - 40.0)
    assert pool_view(scene).problems == [
        "the database has not answered for 40 s: noticed nodes are still taken out of the balancers; "
        "nothing is launched or ended"
    ]


def test_the_plan_is_shown_whole() -> None:
    snapshot = Scene().settled().notice("s1").notice("s2", 50.0).snapshot()
    view = dots(status.plan_view(snapshot))
    kinds = [a.kind for a in view.actions]
    assert "drain" in kinds
    assert "launch" in kinds
    assert all(a.token and a.placement for a in view.actions if a.kind == "launch")
    assert {d.kind for d in view.deferred} <= {"drain", "launch"}
    assert {t.id for t in view.targets} == {"s1", "s2", "o1", "o2"}


def test_alarms_are_shown_with_their_name() -> None:
    view = dots(status.plan_view(Scene().settled(silent_for=60.0).snapshot()))
    assert [a.reason.partition(":")[0] for a in view.actions if a.kind == "alarm"] == ["TooManyUnhealthy"]


def test_events_are_shown_with_a_sentence_also_those_of_another_version() -> None:
    def entry(kind: str, body: bytes) -> StoredEvent:
        return StoredEvent(seq=1, at=1.0, pool="p", kind=kind, node=None, body=body)

    closed = IntentClosed(at=1.0, token="t1", outcome=Outcome.REFUSED, detail="no room")
    view = dots(status.event_view(entry("IntentClosed", encode(closed))))
    assert view.text == "t1: refused: no capacity (no room)"
    assert view.data.outcome == "refused"
    assert dots(status.event_view(entry("FromTheFuture", b'{"at": 1}'))).text == "FromTheFuture"


# -- explain -------------------------------------------------------------------------------------------


def test_the_pool_is_explained_by_its_name_or_as_the_pool() -> None:
    snapshot = Scene().settled().snapshot()
    assert explanation("pool", snapshot) == explanation("chat", snapshot)
    assert explanation("pool", snapshot)[0].startswith("4 nodes are wanted")


def test_a_node_is_explained_by_an_unambiguous_beginning() -> None:
    snapshot = Scene().settled().node("long-name", ON_DEMAND).snapshot()
    assert explanation("long", snapshot)[0].startswith("long-name is ready")
    assert explanation("s", snapshot) == ()  # two nodes begin with it
    assert explanation("nothing like it", snapshot) == ()


@pytest.mark.parametrize("subject", ["a", "r1", "gpu", "spot", "spot gpu in a"])
def test_what_is_sold_is_explained(subject: str) -> None:
    scene = Scene().settled().notice("s1")
    found = explanation(subject, scene.snapshot())
    line = next(s for s in found if s.startswith("spot gpu in a"))
    assert line == ("spot gpu in a: 1.00 USD/h, 1 nodes of this pool; last reclaimed 9 s ago (weight 1.00).")


def test_policies_are_explained_by_their_own_words() -> None:
    for name in policy_names():
        assert policy_text(name), name
    assert {"capacity", "return_to_spot", "drain", "limits"} <= set(policy_names())
    no_policies = {"model", "events", "records", "memory_builder", "observations", "plan_builder"}
    assert not no_policies & set(policy_names())
    text = "\n".join(policy_text("return-to-spot"))
    assert "What it decides:" in text
    assert "Never:" in text
    assert ">>>" not in text
    assert policy_text("os") == ()
    assert policy_text("model") == ()
    assert explanation("mix", Scene().settled().snapshot()) == ()


def priceless(*, cap: float | None = None, noted: bool = True) -> Scene:
    """No price could be read since the start; those of before are two hours old, or were never known."""
    scene = Scene(replicas=2, limits=Limits(spend_per_hour=cap))
    scene.node("s1", SPOT)
    places = {f"r {m}": tuple(place(m, z) for z in "ab") for m in Market}
    scene.settings["offerings"] = {
        part: Observed(value=tuple(Offering(placement=p, price=None) for p in held), error="AccessDenied")
        for part, held in places.items()
    }
    if noted:
        scene.later += [
            PricesRead(at=NOW - 7200.0, part=part, prices=tuple((p, 2.0) for p in held))
            for part, held in places.items()
        ]
    return scene


def test_prices_that_cannot_be_read_are_a_problem_with_their_age_and_what_it_means() -> None:
    problems = pool_view(priceless()).problems
    for market in Market:
        assert (
            f"prices of r {market} cannot all be read (last read 2h ago): AccessDenied; "
            "launches go on at the last known prices" in problems
        )


@pytest.mark.parametrize(
    ("cap", "effect"),
    [
        (None, "launches go on, some at prices that are not known"),
        (9.0, "2 offerings without a price cannot be launched under the spend cap"),
    ],
)
def test_prices_that_were_never_known_say_what_that_means(cap: float | None, effect: str) -> None:
    problems = pool_view(priceless(cap=cap, noted=False)).problems
    assert f"prices of r spot cannot all be read (never read): AccessDenied; {effect}" in problems


def test_a_cost_that_is_not_known_is_null_and_a_problem() -> None:
    scene = priceless(noted=False)
    scene.instances = [replace(i, price=None) for i in scene.instances]
    scene.events = [replace(e, price=None) if isinstance(e, NodeSeen) else e for e in scene.events]
    view = pool_view(scene)
    assert (view.cost_per_hour, view.saved_share, view.nodes[0].price) == (None, None, None)
    assert "what 1 node costs is not known, so the cost of the pool is not known either" in view.problems


# -- failed boots ---------------------------------------------------------------------------------


def boot(node: str, ago: float, why: str = "Client.InternalError: Client error on launch") -> BootFailed:
    return BootFailed(at=NOW - ago, node=node, placement=place(SPOT), why=why, console="a\nout of memory")


def test_failed_boots_are_a_problem_that_names_the_last_one_and_what_to_do() -> None:
    scene = Scene().settled()
    scene.later += [boot("i-1", 4000.0), boot("i-2", 600.0), boot("i-3", 90.0)]
    view = status.pool_view(scene.snapshot(), Totals())
    (told,) = [p for p in view["problems"] if "boots failed" in p]
    assert told.startswith(
        "2 boots failed in the last hour, the last one 1m30s ago: Client.InternalError: Client error"
    )
    assert "KMS key" in told
    assert told.endswith("see `orchestrator node i-3`")
    assert [b["node"] for b in view["failed_boots"]] == ["i-1", "i-2", "i-3"]
    assert view["failed_boots"][0]["console"] == ["a", "out of memory"]
    assert view["failed_boots"][0]["commands"][0] == "orchestrator aws policy CONFIG --kms KEY-ARN"


def test_boots_that_failed_long_ago_are_no_problem_of_now() -> None:
    scene = Scene().settled()
    scene.later.append(boot("i-1", 4000.0))
    assert not [p for p in status.pool_view(scene.snapshot(), Totals())["problems"] if "failed" in p]


def test_boots_that_failed_before_somebody_resumed_are_no_problem_of_now() -> None:
    scene = Scene().settled()
    scene.later += [boot("i-1", 90.0), Resumed(at=NOW - 60.0, by="someone")]
    view = status.pool_view(scene.snapshot(), Totals())
    assert not [p for p in view["problems"] if "failed" in p]
    assert [b["node"] for b in view["failed_boots"]] == ["i-1"]
    scene.later.append(boot("i-2", 30.0))
    (told,) = [p for p in status.pool_view(scene.snapshot(), Totals())["problems"] if "failed" in p]
    assert told.startswith("1 boot failed in the last hour")


def test_no_more_boots_are_counted_than_are_remembered() -> None:
    scene = Scene().settled()
    scene.later += [boot(f"i-{n}", 90.0, why="nobody knows") for n in range(12)]
    (told,) = [p for p in status.pool_view(scene.snapshot(), Totals())["problems"] if "boots failed" in p]
    assert told.startswith("at least 8 boots failed")
    assert "nobody knows; see `orchestrator node i-11`" in told
