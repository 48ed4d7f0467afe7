"""Bugs that are planted on purpose: each must be caught by its invariant, within a stated number of seeds.

A checker that says nothing proves nothing until it was seen to speak. A bug sits in a wrapper around a port,
in the journal, in the world, or in a rule of the daemon that is switched off. `PLANTED` is the whole list;
`caught` plays one of them, seed after seed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planted_judgements import (
    acknowledges_first,
    calls_blindly,
    floor_one_short,
    floor_rounded_down,
    forgets_what_standbys_cost,
    ignores_pauses,
    ignores_settling,
    launches_nothing_after_a_reclaim,
    leaves_at_once,
    trusts_old_lists,
    waits_after_a_failed_write,
)
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
    NeverAdds,
    NeverForgets,
    NeverTerminates,
    PutsDrainingBack,
    ReadyTooEarly,
    RecordsHalfTheWorld,
    ShowsOthersMachines,
    around,
    both,
    deaf_to,
)
from planted_rules import (
    Patch,
    adopts_strangers,
    believes_every_report,
    believes_provider_clock,
    collects_nothing,
    deaf_beyond_the_lease,
    disturbs_what_it_likes,
    drains_are_over_at_once,
    ends_what_serves,
    forgets_nothing,
    goes_on_without_its_lease,
    launches_in_vain,
    launches_what_it_likes,
    loses_requests,
    noticed_nodes_never_drain,
    one_silent_region_freezes_all,
    sells_only_what_was_read,
    silence_is_loss,
    spends_what_it_likes,
    spends_what_others_have,
    spot_notices_take_all,
    takes_out_what_it_likes,
    takes_up_anything,
    two_daemons_act,
    two_daemons_write_the_journal,
)
from planted_scripts import (
    a_stranger_with_our_tag,
    a_write_fails,
    all_lost,
    balancer_forgets,
    beside_another_pool,
    bootstrap_with_lost_answer,
    drained_all_at_once,
    forged_for_all,
    forget_tokens,
    frozen_when_a_launch_is_decided,
    given_time,
    interrupted_on_demand,
    journal_lost,
    lists_away,
    lost_while_a_standby_warms_up,
    noticed_on_a_slow_disk,
    partitioned,
    paused,
    reloaded,
    started_short,
    steady,
    told_by,
    two_noticed,
    usurped,
    wrong_clock,
)
from scenarios import (
    ALB,
    LOOK,
    PACE,
    PROPAGATION,
    TWO_REGIONS,
    Script,
    bootstrap,
    bounds,
    config,
    database_away,
    key_not_granted,
    loss,
    notice,
    operator_drain,
    region_silent,
    restarted_without_prices,
    return_to_spot,
    sales,
    spot_not_allowed,
    two_pools,
)

from cloud.sim.balancer import Traffic
from cloud.sim.effects import Point
from cloud.sim.notices import METADATA, QUEUE
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import Outcome, Simulation
from orchestrator.wiring.ports import Ports


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug: where it sits, the script that shows it, and the invariant that must say so.

    `within`: the number of seeds, from 1 on, one of which must show it. `rule`: switches a rule of the daemon
    off. `pool`: what else `scenarios.config` is given, `other`: what the daemon alone is given. `propagation`
    of the balancer. `seeds` that can show it: "fresh" for those of `campaign.py`, "outage" for those in which
    one part alone is away, "script" where only its own script does.
    """

    name: str
    invariant: str
    script: Script
    within: int = 5
    wrap: Callable[[Simulation, Ports], Ports] = lambda _, ports: ports
    prepare: Callable[[Simulation], object] = lambda _: None
    store: type[RecordedStore] = RecordedStore
    pool: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    propagation: float = 0.0
    seeds: str = "fresh"
    regions: Mapping[str, str] = field(default_factory=dict)
    rule: Patch = contextlib.nullcontext

    def play(
        self, folder: Path, *, seed: int = 1, crash: Point | None = None, hasty: bool = False
    ) -> Outcome:
        """One run of one seed, in a folder of its own; a `hasty` one ends as soon as an invariant breaks."""
        folder.mkdir(parents=True, exist_ok=True)
        sim = Simulation(
            config(folder, **self.pool),
            sales=sales(regions=self.regions),
            seed=seed,
            pace=PACE,
            traffic=Traffic(per_second=2.0, propagation=self.propagation),
            bounds=bounds(LOOK, self.propagation),
            wrap=lambda ports: self.wrap(sim, ports),
            store=self.store,
            crash=crash,
        )
        self.into(sim, self.pool)
        if hasty:
            sim.stop_once_broken()
        with self.rule():
            return sim.run(self.script)

    def into(self, sim: Simulation, pool: Mapping[str, Any]) -> None:
        """Plant what sits in the world; the daemon may keep another pool than the checker watches for."""
        self.prepare(sim)
        if self.other:
            look = sim.config.daemon.poll_instances
            sim.config = config(sim.config.daemon.state_dir.parent, look=look, **{**pool, **self.other})

    def caught(self) -> Outcome | None:
        """The first run in which the invariant speaks; None when it is silent in all `within` seeds."""
        for seed in range(1, self.within + 1):
            with tempfile.TemporaryDirectory() as folder:
                outcome = self.play(Path(folder), seed=seed)
            if self.invariant in {b.name for b in outcome.broken}:
                return outcome
        return None


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
        seeds="script",
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
        other={"replicas": 3},
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
        other={"spot_share": 1.0, "limits": {"disruption": 1.0}},
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
        other={"replicas": 8},
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
        name="a spot interruption takes out on-demand nodes",
        invariant="no-self-harm",
        script=interrupted_on_demand,
        rule=spot_notices_take_all,
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
        name="a noticed node never drains",
        invariant="no-request-cut",
        script=notice,
        rule=noticed_nodes_never_drain,
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
        seeds="script",
        script=two_pools,
        rule=spends_what_others_have,
        pool={"pools": ("p", "q"), "budget": {"spend_per_hour": 17.0}},
    ),
    Planted(
        name="a pool has more nodes than its grant",
        invariant="budget",
        seeds="script",
        script=started_short,
        rule=spends_what_others_have,
        pool={"pools": ("p", "q"), "budget": {"nodes": 6}},
    ),
    Planted(
        name="a silent region freezes all",
        invariant="regions",
        seeds="outage",
        script=region_silent,
        regions=TWO_REGIONS,
        rule=one_silent_region_freezes_all,
    ),
    Planted(
        name="what has no price is not sold",
        invariant="prices",
        seeds="outage",
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
        seeds="script",
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
        seeds="outage",
        script=database_away,
        pool={"replicas": 8},
        rule=deaf_beyond_the_lease,
    ),
    Planted(
        name="a lease that ran out for want of a database is believed",
        invariant="failsafe",
        seeds="outage",
        script=database_away,
        pool={"replicas": 8},
        rule=goes_on_without_its_lease,
    ),
    Planted(
        name="beyond the lease what is silent is taken out",
        invariant="failsafe",
        seeds="outage",
        script=database_away,
        pool={"replicas": 8},
        rule=takes_out_what_it_likes,
    ),
    Planted(
        name="a notice is acknowledged before it is journalled",
        invariant="acknowledged",
        script=noticed_on_a_slow_disk,
        rule=acknowledges_first,
    ),
    Planted(
        name="the spend cap forgets stopped standbys that run",
        invariant="spend",
        script=lost_while_a_standby_warms_up,
        rule=forgets_what_standbys_cost,
        pool={"standby": {"stopped": 1}, "limits": {"spend_per_hour": 12.5}},
    ),
    Planted(name="the floor is one short", invariant="floor", script=given_time, rule=floor_one_short),
    Planted(name="the floor is rounded down", invariant="floor", script=given_time, rule=floor_rounded_down),
    Planted(name="a pause is ignored", invariant="pause", script=paused, rule=ignores_pauses),
    Planted(
        name="stale lists are trusted a hundred times as long",
        invariant="clear-sight",
        script=lists_away,
        rule=trusts_old_lists,
    ),
    Planted(
        name="what was decided before a freeze is done after it",
        invariant="clear-sight",
        script=frozen_when_a_launch_is_decided,
        rule=calls_blindly,
    ),
    Planted(
        name="noticed nodes always leave at once",
        invariant="serves-on",
        script=two_noticed,
        rule=leaves_at_once,
    ),
    Planted(
        name="nothing is launched for 40 minutes after a reclaim",
        invariant="convergence",
        script=loss,
        rule=launches_nothing_after_a_reclaim,
    ),
    Planted(
        name="the queue is not heard",
        invariant="one-source",
        script=told_by(QUEUE),
        wrap=deaf_to(QUEUE),
    ),
    Planted(
        name="what nodes tell of themselves is not heard",
        invariant="one-source",
        script=told_by(METADATA),
        wrap=deaf_to(METADATA),
    ),
    Planted(
        name="a ready node is never made a target",
        invariant="unserved",
        script=all_lost,
        wrap=around("balancers", NeverAdds),
    ),
    Planted(
        name="a set that could not be written waits for a minute",
        invariant="one-source",
        script=a_write_fails,
        rule=waits_after_a_failed_write,
    ),
    Planted(
        name="the settle time is ignored behind a slow balancer",
        invariant="detach-first",
        script=two_noticed,
        rule=ignores_settling,
        pool={"replicas": 10, "drain": ALB},
        propagation=PROPAGATION,
    ),
)
