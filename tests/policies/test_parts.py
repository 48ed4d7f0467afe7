"""What people read of a part that was lost and came back, and how little of one that comes and goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from policies import parts
from policies.event_text import sentence
from policies.events import (
    DaemonStarted,
    Event,
    GoneCause,
    NodeGone,
    NodeReady,
    NodeSeen,
    NodeStopped,
    PartBack,
    PartLost,
    PoolConfigured,
    PoolWhole,
)
from policies.fleet import Fleet
from policies.memory import reduce
from policies.model import (
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Observed,
    PartKind,
    Placement,
    Pool,
    World,
)
from policies.records import Memory
from policies.verdict import State, Verdict, change

PLACE = Placement("toy", "r", "a", "gpu", Market.SPOT)
START = 100_000.0


@dataclass
class Watched:
    """A daemon that looks at a world of which the test says what fails; a turn every `step` seconds."""

    pool: Pool = field(default_factory=lambda: Pool(name="p", replicas=2))
    now: float = START
    memory: Memory = field(default_factory=Memory)
    journal: list[Event] = field(default_factory=list)
    failing: dict[str, float] = field(default_factory=dict)
    read_at: dict[str, float | None] = field(default_factory=dict)
    silent: dict[str, float] = field(default_factory=dict)
    nodes: int = 2
    awake_since: float = START
    heard: dict[str, float | None] = field(default_factory=dict)
    step: float = 0.25

    def __post_init__(self) -> None:
        for node in self.ids:
            self.happen(
                NodeSeen(
                    at=START, node=node, token=f"p/1/{node}", placement=PLACE, launched_at=START, price=1.0,
                    address=f"{node}:1", standby=None,
                ),
                NodeReady(at=START, node=node, address=f"{node}:1"),
            )  # fmt: skip
        self.journal.clear()

    @property
    def ids(self) -> list[str]:
        return [f"i-{n}" for n in range(self.nodes)]

    def happen(self, *events: Event) -> None:
        self.memory = reduce(self.memory, *events)
        self.journal += events

    def fail(self, *names: str, error_at: float | None = None) -> None:
        for name in names:
            self.failing[name] = self.now if error_at is None else error_at

    def heal(self, *names: str) -> None:
        for name in names:
            self.failing.pop(name)

    def _view(self, name: str, value: Any) -> Observed[Any]:
        since = self.failing.get(name)
        if since is None:
            return Observed(value=value, at=self.read_at.get(name, self.now))
        return Observed(value=value, at=since - 1.0, error="it is dead", failing_since=since)

    def world(self) -> World:
        machines = tuple(
            Instance(
                id=n, pool="p", token=f"p/1/{n}", placement=PLACE, state=InstanceState.RUNNING,
                address=f"{n}:1", launched_at=START, price=1.0,
            )
            for n in self.ids
        )  # fmt: skip
        engines = {
            n: EngineReading(
                node=n, at=self.now, ready=True, ok=n not in self.silent, failing_since=self.silent.get(n),
                failure="no answer" if n in self.silent else "",
            )
            for n in self.ids
        }  # fmt: skip
        return World(
            now=self.now,
            regions={"": self._view("instances", machines)},
            offerings={"us-east-1 spot": self._view("us-east-1 spot", ())},
            balancers={"gateway": self._view("gateway", ())},
            engines=engines,
            heard=self.heard,
            awake_since=self.awake_since,
        )

    def turns(self, seconds: float) -> list[Event]:
        """What is written in so many seconds."""
        before, until = len(self.journal), self.now + seconds
        while self.now < until:
            self.now += self.step
            world = self.world()
            fleet = Fleet.of(self.pool, world, self.memory)
            self.happen(*parts.news(world, fleet, self.memory))
        return self.journal[before:]


def test_all_is_well_and_nothing_is_written() -> None:
    w = Watched(heard={"feed": START})
    assert w.turns(30.0) == []


def test_one_look_that_failed_is_no_loss() -> None:
    w = Watched()
    for _ in range(20):
        w.fail("gateway")
        assert w.turns(1.0) == []
        w.heal("gateway")
        assert w.turns(5.0) == []


def test_a_gateway_that_is_away_is_lost_once_and_back_at_once() -> None:
    w = Watched()
    w.fail("gateway")
    (lost,) = w.turns(34.0)
    assert isinstance(lost, PartLost)
    assert (lost.kind, lost.part, lost.since, lost.error) == (
        PartKind.BALANCER,
        "gateway",
        START,
        "it is dead",
    )
    assert lost.at - START <= 3.0
    assert sentence(lost) == "the gateway has not answered for 2 s: it is dead"
    w.heal("gateway")
    (back,) = w.turns(1.0)
    assert sentence(back) == "the gateway answers again after 34 s"
    assert w.turns(60.0) == []


@pytest.mark.parametrize(
    ("name", "kind", "within", "text"),
    [
        ("instances", PartKind.CLOUD, 16.0, "the cloud's list of machines"),
        ("us-east-1 spot", PartKind.PRICES, 16.0, "the price list of us-east-1 spot"),
    ],
)
def test_a_list_is_lost_later_and_by_its_own_name(
    name: str, kind: PartKind, within: float, text: str
) -> None:
    w = Watched()
    w.fail(name)
    assert w.turns(10.0) == []
    (lost,) = w.turns(within - 10.0)
    assert isinstance(lost, PartLost)
    assert lost.kind is kind
    assert sentence(lost).startswith(f"{text} has not answered for 15 s")
    w.heal(name)
    (back,) = w.turns(1.0)
    assert sentence(back).startswith(f"{text} answers again")


def test_a_source_of_notices_is_lost_when_nothing_was_heard_for_long_even_from_the_start() -> None:
    w = Watched(heard={"feed": None, "queue": START})
    assert w.turns(59.0) == []
    lost = w.turns(2.0)
    assert [(e.kind, e.part) for e in lost if isinstance(e, PartLost)] == [
        (PartKind.NOTICES, "feed"),
        (PartKind.NOTICES, "queue"),
    ]
    assert sentence(lost[0]) == "notice source feed has not answered for 60 s"
    w.heard = {"feed": w.now, "queue": START}
    (back,) = w.turns(1.0)
    assert sentence(back) == "notice source feed answers again after 61 s"


def test_a_daemon_that_starts_again_neither_repeats_nor_forgets_a_loss() -> None:
    w = Watched()
    w.fail("gateway")
    w.turns(5.0)
    w.happen(DaemonStarted(at=w.now, epoch=2))
    w.awake_since = w.now
    w.heal("gateway")
    w.read_at["gateway"] = None  # not looked at yet
    assert w.turns(0.5) == []
    w.fail("gateway", error_at=w.now)
    assert w.turns(30.0) == []
    w.heal("gateway")
    w.read_at.clear()
    (back,) = w.turns(1.0)
    assert isinstance(back, PartBack)
    assert back.after > 35.0


def test_the_time_in_which_the_daemon_itself_hung_is_nobodys_loss() -> None:
    w = Watched()
    w.fail("gateway", "instances")
    w.now += 400.0
    w.awake_since = w.now
    assert w.turns(2.0) == []


def test_a_loss_is_not_taken_back_because_the_daemon_hung() -> None:
    w = Watched(heard={"feed": START})
    w.fail("gateway")
    w.turns(70.0)
    lost = len(w.journal)
    w.now += 400.0
    w.awake_since = w.now
    w.turns(30.0)
    assert len(w.journal) == lost


def test_a_part_that_comes_and_goes_all_day_writes_little_and_its_last_state_is_told() -> None:
    w = Watched(nodes=0, step=1.0)
    for _ in range(2_000):  # more than half a day
        w.fail("gateway")
        w.turns(4.0)
        w.heal("gateway")
        w.turns(20.0)
    assert len(w.journal) < 50
    w.turns(3600.0)
    assert isinstance(w.journal[-1], PartBack)


def test_a_further_loss_is_told_as_soon_as_the_first_and_a_long_one_comes_back_at_once() -> None:
    w = Watched()
    for times in range(6):
        w.fail("gateway")
        (lost,) = w.turns(3.0)
        assert isinstance(lost, PartLost)
        w.turns(0.5 if times < 3 else 30.0 * 2.0**times)
        w.heal("gateway")
        (back,) = w.turns(0.5)
        assert isinstance(back, PartBack)


def test_after_an_hour_of_calm_a_part_is_as_any_other() -> None:
    w = Watched(nodes=0)
    for _ in range(5):
        w.fail("gateway")
        w.turns(4.0)
        w.heal("gateway")
        assert isinstance(w.turns(0.25)[-1], PartBack)
        w.turns(3601.0)


# -- engines -------------------------------------------------------------------------------------------


def test_an_engine_is_lost_when_its_node_leaves_the_set_and_not_before() -> None:
    w = Watched()
    w.silent["i-1"] = w.now
    assert w.turns(4.5) == []
    (lost,) = w.turns(1.0)
    assert isinstance(lost, PartLost)
    assert (lost.kind, lost.node, lost.error) == (PartKind.ENGINE, "i-1", "no answer")
    assert sentence(lost) == "its engine has not answered for 5 s: no answer"
    w.silent.clear()
    (back,) = w.turns(0.5)
    assert isinstance(back, PartBack)
    assert (back.node, sentence(back)) == ("i-1", "its engine answers again after 6 s")


def test_of_a_thousand_engines_each_has_one_line() -> None:
    w = Watched(nodes=1000, pool=Pool(name="p", replicas=1000))
    w.silent = dict.fromkeys(w.ids, w.now - 10.0)
    assert len(w.turns(1.0)) == 1000
    assert w.turns(1.0) == []
    w.silent.clear()
    assert len(w.turns(0.5)) == 1000


@pytest.mark.parametrize(
    "end",
    [
        NodeGone(at=START, node="i-1", cause=GoneCause.LOST, ended=True),
        NodeStopped(at=START, node="i-1"),
    ],
    ids=["gone", "stopped"],
)
def test_of_a_node_that_has_ended_nothing_is_kept(end: Event) -> None:
    w = Watched()
    w.silent["i-1"] = w.now
    w.turns(6.0)
    assert len(w.memory.parts) == 1
    w.happen(end)
    assert not w.memory.parts


def test_the_name_of_another_balancer_or_region_is_in_the_sentence() -> None:
    said = [
        sentence(PartLost(at=9.0, kind=kind, part=part, since=1.0, error=""))
        for kind, part in ((PartKind.BALANCER, "alb"), (PartKind.CLOUD, "eu-west-1"))
    ]
    assert said == [
        "balancer alb has not answered for 8 s",
        "the cloud's list of machines in eu-west-1 has not answered for 8 s",
    ]


# -- the state of the pool -----------------------------------------------------------------------------


def changed(w: Watched, state: State) -> list[Event]:
    """The pool is judged so now; what is reported of it."""
    world = w.world()
    fleet = Fleet.of(w.pool, world, w.memory)
    events = change(Verdict(state=state, serving=2, reasons=("because",)), fleet, world, w.memory)
    w.happen(*events)
    return [*events]


def test_a_change_of_the_state_is_told_once_and_over_a_restart() -> None:
    w = Watched()
    (first,) = changed(w, State.STARTING)
    assert sentence(first).startswith("the pool is starting: because; 2 of 2 nodes ready, 2 serving, ")
    assert changed(w, State.STARTING) == []
    (second,) = changed(w, State.DOWN)
    assert sentence(second).startswith("the pool is down, and was starting: because; ")
    w.happen(DaemonStarted(at=w.now, epoch=2))
    assert changed(w, State.DOWN) == []


def test_that_nobody_has_looked_since_the_daemon_started_or_woke_up_is_no_news() -> None:
    w = Watched()
    assert changed(w, State.STARTING)
    w.happen(PoolWhole(at=w.now))
    assert changed(w, State.OK)
    assert changed(w, State.STARTING) == [], "the pool is as it was, as far as anybody knows"
    assert changed(w, State.OK) == []
    assert changed(w, State.DOWN)
    w.happen(PoolConfigured(at=w.now, replicas=3), PoolConfigured(at=w.now, replicas=4))
    assert w.memory.whole_at is None
    assert changed(w, State.STARTING), "more nodes are wanted"


def test_a_state_that_comes_and_goes_is_told_a_few_times_and_the_last_one_always() -> None:
    w = Watched()
    for second in range(3600):
        w.now += 1.0
        changed(w, State.DEGRADED if second % 2 else State.OK)
    assert len(w.journal) <= 16 * 7
    w.now += 600.0
    changed(w, State.OK)
    w.now += 600.0
    assert changed(w, State.DEGRADED)


def test_a_pool_that_goes_down_after_many_changes_is_told_all_the_same_and_not_for_ever() -> None:
    w = Watched()
    for _ in range(12):
        w.now += 1.0
        changed(w, State.DEGRADED)
        changed(w, State.OK)
    assert len(w.journal) == 17
    assert changed(w, State.BELOW_FLOOR)
    assert changed(w, State.DOWN)
    for _ in range(100):
        changed(w, State.OK)
        changed(w, State.DOWN)
    assert len(w.journal) == 19
