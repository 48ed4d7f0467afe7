"""Bugs that are planted on purpose: each must be caught by its invariant, within a stated number of seeds.

A checker that says nothing proves nothing until it was seen to speak. A bug sits in a wrapper around a port,
in the journal, in the world, or in a rule of the daemon that is switched off. `PLANTED` is the whole list;
`caught` plays one of them, seed after seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from planted_ports import (
    AcknowledgesTooEarly,
    AcknowledgesWithABug,
    Deaf,
    EmptiesOnce,
    ForgetsAll,
    ForgetsIntents,
    HidesNewMachines,
    LaunchesWithABug,
    ListsWithABug,
    ListsWithoutAPause,
    LosesATarget,
    NeverForgets,
    NeverTerminates,
    PutsDrainingBack,
    ReadyTooEarly,
    RecordsHalfTheWorld,
    ShowsOthersMachines,
    around,
    both,
)
from planted_rules import (
    Patch,
    adopts_strangers,
    believes_every_report,
    believes_provider_clock,
    collects_nothing,
    deaf_beyond_the_lease,
    disturbs_what_it_likes,
    doomed_nodes_never_drain,
    drains_are_over_at_once,
    ends_what_serves,
    forgets_nothing,
    goes_on_without_its_lease,
    launches_in_vain,
    launches_what_it_likes,
    loses_requests,
    one_silent_region_freezes_all,
    sells_only_what_was_read,
    silence_is_loss,
    spends_what_it_likes,
    spends_what_others_have,
    spot_notices_doom_all,
    takes_out_what_it_likes,
    takes_up_anything,
    two_daemons_act,
    two_daemons_write_the_journal,
)
from scenarios import (
    PACE,
    TWO_REGIONS,
    bootstrap,
    config,
    database_away,
    key_not_granted,
    loss,
    notice,
    offer,
    operator_drain,
    place,
    region_silent,
    restarted_without_prices,
    return_to_spot,
    sales,
    spot_not_allowed,
    two_pools,
)

from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.balancer import Traffic
from cloud.sim.effects import Point
from cloud.sim.faults import Fault
from cloud.sim.notices import METADATA
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import Outcome, Simulation
from orchestrator.wiring.ports import Ports
from policies.events import OperatorDrained
from policies.model import Market, NoticeKind

Script = Callable[[Simulation], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug: where it sits, the script that shows it, and the invariant that must say so.

    `within`: the number of seeds, from 1 on, one of which must show it. `rule`: switches a rule of the daemon
    off. `pool`: what else `scenarios.config` is given.
    """

    name: str
    invariant: str
    script: Script
    within: int = 5
    wrap: Callable[[Simulation, Ports], Ports] = lambda _, ports: ports
    prepare: Callable[[Simulation], object] = lambda _: None
    store: type[RecordedStore] = RecordedStore
    pool: dict[str, Any] = field(default_factory=dict)
    regions: Mapping[str, str] = field(default_factory=dict)
    rule: Patch = contextlib.nullcontext

    def play(self, folder: Path, *, seed: int = 1, crash: Point | None = None) -> Outcome:
        """One run of one seed, in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        sim = Simulation(
            config(folder, **self.pool),
            sales=sales(regions=self.regions),
            seed=seed,
            pace=PACE,
            traffic=Traffic(per_second=2.0),
            wrap=lambda ports: self.wrap(sim, ports),
            store=self.store,
            crash=crash,
        )
        self.prepare(sim)
        with self.rule():
            return sim.run(self.script)

    def caught(self) -> Outcome | None:
        """The first run in which the invariant speaks; None when it is silent in all `within` seeds."""
        for seed in range(1, self.within + 1):
            with tempfile.TemporaryDirectory() as folder:
                outcome = self.play(Path(folder), seed=seed)
            if self.invariant in {b.name for b in outcome.broken}:
                return outcome
        return None


# -- scripts and worlds ----------------------------------------------------------------------------


def forget_tokens(sim: Simulation) -> None:
    sim.world.launch = lambda request: sim.world.described(sim.world.add(request))  # type: ignore[method-assign]


async def bootstrap_with_lost_answer(sim: Simulation) -> None:
    sim.world.pace = dataclasses.replace(PACE, list_lag=(8.0, 8.0))
    sim.world.faults.arm("launch", Fault.LOST)
    await bootstrap(sim)


async def beside_another_pool(sim: Simulation) -> None:
    for number in range(5):
        request = LaunchRequest(
            token=f"p/9/{number}",
            pool="another",
            placement=place(Market.SPOT, "a"),
            command=EngineCommand(argv=("sim",)),
        )
        machine = sim.world.add(request)
        machine.visible_at = machine.until = machine.loaded_at = sim.clock.now()
    await bootstrap(sim)


async def steady(sim: Simulation) -> None:
    """A whole pool with nothing to do."""
    sim.furnish()
    sim.boot()
    await sim.settle(steady=60.0)


async def forged_for_all(sim: Simulation) -> None:
    """Every node says that it goes away, and none does."""
    await whole(sim)
    await sim.clock.sleep(10.0)
    for machine in sim.live():
        sim.board.publish(machine.id, deadline=sim.clock.now() + 15.0, sources=(METADATA,))
    await sim.settle()


async def interrupted_on_demand(sim: Simulation) -> None:
    """The cloud says spot interruption of nodes that are no spot nodes."""
    await whole(sim)
    for machine in sim.live(Market.ON_DEMAND):
        sim.board.publish(machine.id, deadline=sim.clock.now() + 60.0)
    await sim.settle()


async def journal_lost(sim: Simulation) -> None:
    await whole(sim)
    assert sim.running is not None
    sim.kill(sim.running)
    sim.lose_journal()
    sim.boot()
    await sim.settle(within=120.0)


async def a_stranger_with_our_tag(sim: Simulation) -> None:
    request = LaunchRequest(
        token="web-7",
        pool=sim.pool.name,
        placement=place(Market.ON_DEMAND, "c"),
        command=EngineCommand(argv=("sim",)),
    )
    machine = sim.world.add(request, foreign=True)
    machine.visible_at = machine.until = machine.loaded_at = sim.clock.now()
    await whole(sim)


async def wrong_clock(sim: Simulation) -> None:
    """The host is an hour ahead of the provider, and its daemon is awake for longer than a boot takes."""
    sim.ahead = 3600.0
    sim.boot()
    await sim.settle()
    await sim.clock.sleep(sim.pool.health.boot_timeout)
    sim.world.terminate(sim.live()[0].id)
    await sim.settle()


async def usurped(sim: Simulation) -> None:
    """A daemon hangs, another is started in its place, and the first wakes up in the middle of a swap."""
    await whole(sim)
    first = sim.running
    assert first is not None
    sim.freeze(first)
    (sim.config.daemon.state_dir / "lease").unlink()
    sim.boot()
    await sim.clock.sleep(10.0)
    sim.thaw(first)
    for machine in sim.live(Market.SPOT):
        sim.board.reclaim(machine.id, after=60.0, notice=60.0)
    await sim.settle(within=300.0)


async def drained_all_at_once(sim: Simulation) -> None:
    """An operator asks for the drain of every on-demand node."""
    await whole(sim)
    for machine in sim.live(Market.ON_DEMAND):
        asked = partial(OperatorDrained, node=machine.id, budget=20.0, reason="maintenance")
        await sim.operate(lambda now, asked=asked: asked(at=now))
    await sim.settle()


async def started_short(sim: Simulation) -> None:
    """From nothing to what the budget holds of what the pools want."""
    sim.boot()
    await sim.clock.sleep(120.0)


async def partitioned(sim: Simulation) -> None:
    """The daemon's host reaches none of the nodes; the balancer does. The only node must stay."""
    await whole(sim)
    sim.checker.faults_on = True
    sim.world.faults.arm("launch", Fault.QUOTA, times=1000)
    sim.world.faults.unreachable |= {m.id for m in sim.live()}
    await sim.clock.sleep(120.0)
    sim.world.faults.unreachable.clear()
    sim.world.faults.disarm("launch")
    sim.checker.faults_on = False
    await sim.settle()


async def balancer_forgets(sim: Simulation) -> None:
    """A drain is acknowledged and forgotten."""
    await whole(sim)
    sim.checker.faults_on = True
    sim.world.faults.forgetful = True
    node = sim.live(Market.ON_DEMAND)[0].id
    deadline = sim.clock.now() + 20.0
    sim.board.publish(node, kind=NoticeKind.MAINTENANCE, deadline=deadline)
    await sim.clock.sleep(90.0)
    sim.world.faults.forgetful = False
    sim.checker.faults_on = False
    await sim.settle()


async def reloaded(sim: Simulation) -> None:
    """Somebody writes a word where a number belongs, and reloads."""
    await whole(sim)
    await offer(sim, lambda: config(sim.config.daemon.state_dir.parent, replicas="many"))
    await sim.settle()


async def whole(sim: Simulation) -> None:
    """A whole pool under a daemon."""
    sim.furnish()
    sim.boot()
    await sim.settle()


def other_pool(**pool: Any) -> Callable[[Simulation], object]:
    """The daemon keeps another pool than the checker watches for."""

    def prepare(sim: Simulation) -> None:
        sim.config = config(sim.config.daemon.state_dir.parent, **pool)

    return prepare


PLANTED: tuple[Planted, ...] = (
    Planted(
        name="the cloud ignores tokens",
        invariant="one-per-token",
        script=bootstrap_with_lost_answer,
        prepare=forget_tokens,
    ),
    Planted(
        name="lists hide new machines",
        invariant="tracked",
        script=loss,
        wrap=around("instances", HidesNewMachines),
    ),
    Planted(
        name="lists show another pool's machines",
        invariant="own-only",
        script=beside_another_pool,
        wrap=around("instances", ShowsOthersMachines),
    ),
    Planted(
        name="machines are never ended",
        invariant="convergence",
        script=return_to_spot,
        wrap=around("instances", NeverTerminates),
    ),
    Planted(
        name="an adapter raises what it may not, in a root task",
        invariant="daemon-lives",
        script=bootstrap,
        wrap=around("instances", ListsWithABug),
    ),
    Planted(
        name="an adapter raises what it may not, in a call",
        invariant="convergence",
        script=bootstrap,
        wrap=around("instances", LaunchesWithABug),
    ),
    Planted(
        name="an adapter raises what it may not, beside the loop",
        invariant="nothing-unhandled",
        script=notice,
        wrap=around("notices", AcknowledgesWithABug),
    ),
    Planted(
        name="a set is acknowledged and not applied",
        invariant="detach-first",
        script=return_to_spot,
        wrap=around("balancers", AcknowledgesTooEarly),
    ),
    Planted(
        name="the set is emptied",
        invariant="last-target",
        script=bootstrap,
        wrap=around("balancers", EmptiesOnce),
    ),
    Planted(
        name="a healthy target is left out",
        invariant="convergence",
        script=bootstrap,
        wrap=around("balancers", LosesATarget),
    ),
    Planted(
        name="a healthy target is taken out by choice",
        invariant="no-self-harm",
        script=steady,
        prepare=other_pool(replicas=3),
    ),
    Planted(
        name="a draining node is put back",
        invariant="no-way-back",
        script=notice,
        wrap=around("balancers", PutsDrainingBack),
    ),
    Planted(
        name="ended nodes stay targets",
        invariant="dead-target",
        script=notice,
        wrap=around("balancers", NeverForgets),
    ),
    Planted(
        name="a node is a target before it is ready",
        invariant="ready-first",
        script=bootstrap,
        wrap=around("engine", ReadyTooEarly),
    ),
    Planted(name="requests in flight are not seen", invariant="drain-first", script=notice, wrap=both),
    Planted(
        name="notices are not heard", invariant="prompt-detach", script=notice, wrap=around("notices", Deaf)
    ),
    Planted(
        name="notices are not heard, and requests pay for it",
        invariant="no-request-cut",
        script=notice,
        wrap=around("notices", Deaf),
    ),
    Planted(
        name="the on-demand floor is forgotten",
        invariant="floor",
        script=notice,
        prepare=other_pool(spot_share=1.0, limits={"disruption": 1.0}),
    ),
    Planted(
        name="a start that failed is repeated",
        invariant="in-vain",
        script=key_not_granted,
        rule=launches_in_vain,
    ),
    Planted(
        name="what is not allowed is repeated",
        invariant="in-vain",
        script=spot_not_allowed,
        rule=launches_in_vain,
    ),
    Planted(
        name="too many are launched",
        invariant="bounded",
        script=bootstrap,
        prepare=other_pool(replicas=8),
    ),
    Planted(name="intents are not journalled", invariant="journal", script=bootstrap, store=ForgetsIntents),
    Planted(name="nothing is journalled", invariant="journal", script=notice, store=ForgetsAll),
    Planted(
        name="what was probed is not recorded", invariant="replay", script=notice, store=RecordsHalfTheWorld
    ),
    Planted(
        name="every report of a node is believed",
        invariant="no-self-harm",
        script=forged_for_all,
        rule=believes_every_report,
    ),
    Planted(
        name="a spot interruption dooms on-demand nodes",
        invariant="no-self-harm",
        script=interrupted_on_demand,
        rule=spot_notices_doom_all,
    ),
    Planted(
        name="what nobody remembers is not collected",
        invariant="tracked",
        script=journal_lost,
        rule=collects_nothing,
    ),
    Planted(
        name="a tag makes a machine ours",
        invariant="own-only",
        script=a_stranger_with_our_tag,
        rule=adopts_strangers,
    ),
    Planted(
        name="the provider's clock is believed",
        invariant="convergence",
        script=wrong_clock,
        rule=believes_provider_clock,
    ),
    Planted(
        name="a daemon without its lease goes on",
        invariant="one-writer",
        script=usurped,
        rule=two_daemons_act,
    ),
    Planted(
        name="a daemon without its lease writes the journal",
        invariant="journal",
        script=usurped,
        rule=two_daemons_write_the_journal,
    ),
    Planted(
        name="a drain is over at once",
        invariant="drain-first",
        script=notice,
        rule=drains_are_over_at_once,
    ),
    Planted(
        name="a doomed node never drains",
        invariant="no-request-cut",
        script=notice,
        rule=doomed_nodes_never_drain,
    ),
    Planted(
        name="an acknowledgement is enough to end a node",
        invariant="detach-first",
        script=balancer_forgets,
        rule=ends_what_serves,
    ),
    Planted(
        name="what this host cannot reach is lost",
        invariant="last-target",
        script=partitioned,
        rule=silence_is_loss,
        pool={"replicas": 1},
    ),
    Planted(
        name="the spend cap is ignored",
        invariant="spend",
        script=notice,
        rule=spends_what_it_likes,
        pool={"limits": {"spend_per_hour": 8.5}},
    ),
    Planted(
        name="a pool launches beyond its grant",
        invariant="budget",
        script=two_pools,
        rule=spends_what_others_have,
        pool={"pools": ("p", "q"), "budget": {"spend_per_hour": 17.0}},
    ),
    Planted(
        name="a pool has more nodes than its grant",
        invariant="budget",
        script=started_short,
        rule=spends_what_others_have,
        pool={"pools": ("p", "q"), "budget": {"nodes": 6}},
    ),
    Planted(
        name="a silent region freezes all",
        invariant="regions",
        script=region_silent,
        regions=TWO_REGIONS,
        rule=one_silent_region_freezes_all,
    ),
    Planted(
        name="what has no price is not sold",
        invariant="prices",
        script=restarted_without_prices,
        rule=sells_only_what_was_read,
    ),
    Planted(
        name="the launch rate is ignored",
        invariant="launch-rate",
        script=bootstrap,
        rule=launches_what_it_likes,
        pool={"replicas": 10, "limits": {"launches_per_minute": 2}},
    ),
    Planted(
        name="the disruption budget is ignored",
        invariant="disruption",
        script=drained_all_at_once,
        rule=disturbs_what_it_likes,
    ),
    Planted(
        name="requests of operators are lost",
        invariant="operator-obeyed",
        script=operator_drain,
        rule=loses_requests,
    ),
    Planted(
        name="any configuration is taken up",
        invariant="reload",
        script=reloaded,
        rule=takes_up_anything,
    ),
    Planted(
        name="nodes that ended are never forgotten",
        invariant="convergence",
        script=loss,
        rule=forgets_nothing,
    ),
    Planted(
        name="a list is asked for without a pause",
        invariant="call-budget",
        script=bootstrap,
        wrap=around("instances", ListsWithoutAPause),
    ),
    Planted(
        name="without its database a pair takes nothing out",
        invariant="failsafe",
        script=database_away,
        pool={"replicas": 8},
        rule=deaf_beyond_the_lease,
    ),
    Planted(
        name="a lease that ran out for want of a database is believed",
        invariant="failsafe",
        script=database_away,
        pool={"replicas": 8},
        rule=goes_on_without_its_lease,
    ),
    Planted(
        name="beyond the lease what is silent is taken out",
        invariant="failsafe",
        script=database_away,
        pool={"replicas": 8},
        rule=takes_out_what_it_likes,
    ),
)
