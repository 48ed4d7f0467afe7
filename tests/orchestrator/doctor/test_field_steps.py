"""A field test: every step is told, what the cloud cannot do is skipped, and what was launched is ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hand_clock import HandClock

from cloud.errors import CloudError, Denied, InsufficientCapacity, Misconfigured, Throttled, Uncertain
from cloud.kinds import Preemption
from cloud.ports import EngineCommand
from orchestrator.doctor import field_steps
from orchestrator.doctor.field_steps import FieldTest
from orchestrator.doctor.findings import State
from orchestrator.doctor.short_lived import ShortLived
from orchestrator.wiring.clouds import WIRING
from policies.evidence import ours
from policies.memory import Memory
from policies.model import Confidence, Ending, InstanceState, Market, Notice, NoticeKind, Offering, Pool
from tests.orchestrator.doctor import test_trial
from tests.orchestrator.doctor.test_trial import placement

BOOT, WITHIN = 900.0, 300.0
LIFE = ["accepted", "replayed", "listed", "running"]
TURN = ["stopped", "started"]
TAKEN = ["preempted", "noticed", "taken"]
END = ["ended", "gone", "replayed after the end"]


class Clock(HandClock):
    """One that lets the others have a turn."""

    async def sleep(self, seconds):
        await super().sleep(seconds)
        await asyncio.sleep(0)


class Cloud(test_trial.Cloud):
    """The cloud of a try, which also stops, starts and takes machines. One that ends or stops is on its way
    for two looks. `doubles`: a replay launches another. `doubles_after_the_end`: one then launches the "same"
    again, or "another", which the list may lack ("unlisted") or the answer ("unsaid")."""

    def __init__(self, clock, address="10.0.0.5:8000"):
        super().__init__(clock, address)
        self.pending = 1
        for call in ("stop", "start", "preempt"):
            self.faults[call], self.calls[call] = [], 0
        self.ending_looks = 2
        self.sources = []
        self.preempts, self.ending, self.told_later = True, Ending.RECLAIM, False
        self.doubles, self.doubles_after_the_end, self.hidden = False, "", set()

    async def launch(self, request):
        found = await super().launch(request)
        over = found.state is InstanceState.TERMINATED
        if self.doubles and self.calls["launch"] > 1 and not over:
            self.doubles = False
            return self._second(found)
        if over and self.doubles_after_the_end:
            how, self.doubles_after_the_end = self.doubles_after_the_end, ""
            if how == "same":
                self.machines[request.token] = replace(found, state=InstanceState.RUNNING)
                return self.machines[request.token]
            second = self._second(found)
            self.hidden = {second.id} if how == "unlisted" else set()
            return found if how == "unsaid" else second
        return found

    def _second(self, found):
        """One more machine of the same token."""
        self.machines["second"] = replace(found, id="i-9", state=InstanceState.RUNNING)
        return self.machines["second"]

    async def list(self, pool, region):
        listed = await super().list(pool, region)
        for token, one in self.machines.items():
            if one.state in (InstanceState.SHUTTING_DOWN, InstanceState.STOPPING):
                self.ending_looks -= 1
                if self.ending_looks <= 0:
                    stops = one.state is InstanceState.STOPPING
                    state = InstanceState.STOPPED if stops else InstanceState.TERMINATED
                    ending = self.ending if self.told_later and not stops else one.ending
                    self.machines[token], self.ending_looks = replace(one, state=state, ending=ending), 2
        return tuple(one for one in listed if one.id not in self.hidden)

    async def stop(self, node):
        await self._called("stop")
        self._put(node, state=InstanceState.STOPPING)

    async def start(self, node):
        await self._called("start")
        self._put(node, state=InstanceState.RUNNING)

    async def preempt(self, machine):
        await self._called("preempt")
        if self.preempts:
            for source in self.sources:
                source.tell(machine.id)
            over = {"state": InstanceState.TERMINATED, "ending": self.ending, "ending_why": "reclaimed"}
            ends = {"state": InstanceState.SHUTTING_DOWN, "ending": Ending.UNKNOWN}
            self._put(machine.id, **(ends if self.told_later else over))

    def _put(self, node, **changes):
        for token, one in self.machines.items():
            if one.id == node:
                self.machines[token] = replace(one, **changes)


class Source:
    """Notices that a test tells."""

    def __init__(self, clock, name="aws-queue", silent=False, breaks=None, late=0.0):
        self.name, self.clock, self.silent, self.breaks, self.late = name, clock, silent, breaks, late
        self.told, self.acknowledged = asyncio.Queue(), []

    def tell(self, node):
        if not self.silent:
            at = self.clock.now()
            self.told.put_nowait(
                Notice(
                    id=f"{self.name}/{node}",
                    kind=NoticeKind.INTERRUPTION,
                    node=node,
                    deadline=at + 120.0,
                    source=self.name,
                    confidence=Confidence.CONFIRMED,
                    seen_at=at,
                )
            )

    async def stream(self):
        if self.breaks is not None:
            raise self.breaks
        while True:
            notice = await self.told.get()
            while self.clock.now() < notice.seen_at + self.late:
                await self.clock.sleep(0.0)
            yield notice

    async def acknowledge(self, notice):
        self.acknowledged.append(notice)


class Stand:
    """A field test with everything that it talks to."""

    def __init__(self, market=Market.SPOT):
        self.clock = Clock()
        self.cloud = Cloud(self.clock)
        self.cloud.sources = [Source(self.clock)]
        self.said: list[str] = []
        self.noted: list[tuple[str, str]] = []
        self.changes = {}
        self.market, self.agent = market, None
        self.node = ShortLived(
            instances=self.cloud,
            clock=self.clock,
            pool="llama",
            command=EngineCommand(argv=()),
            offerings=[Offering(placement=placement(market=market), price=3.6)],
            token="field-test/0123",
            said=self.said.append,
            by_hand=WIRING["aws"].by_hand,
            noted=lambda request, node: self.noted.append((request.token, node)),
        )

    def test(self):
        given = {
            "instances": self.cloud,
            "stops": True,
            "preemption": Preemption(by="a call", right="a right", within=WITHIN),
            "preempt": self.cloud.preempt,
            "sources": self.cloud.sources,
            "agent": self.agent,
        }
        return FieldTest(self.node, field_steps.Cloud(**{**given, **self.changes}), self.clock, boot=BOOT)

    async def run(self):
        self.tried = self.test()
        return [(p.finding.subject, p.finding.state) for p in await self.tried.run()]

    @property
    def texts(self):
        return {p.finding.subject: p.finding for p in self.node.steps}


@pytest.fixture
async def stand():
    return Stand()


def well(*steps):
    return [(step, State.OK) for step in steps]


async def test_a_cloud_that_does_all_of_it(stand):
    assert await stand.run() == well(*LIFE, *TURN, *TAKEN, *END)
    assert (stand.cloud.living, stand.tried.certain) == ([], True)
    assert stand.noted == [("field-test/0123-0", ""), ("field-test/0123-0", "i-0")]
    assert [(heard.source, heard.left) for heard in stand.tried.heard] == [("aws-queue", 120.0)]
    assert "reclaimed" in stand.texts["taken"].text
    assert len(stand.cloud.machines) == 1


async def test_no_daemon_takes_the_node_for_its_own(stand):
    await stand.run()
    (machine,) = stand.cloud.machines.values()
    for name in ("llama", "field-test"):
        assert not ours(Pool(name=name, replicas=1), Memory(), machine).holds


async def test_nothing_is_acknowledged(stand):
    stand.cloud.sources[0].tell("somebody-else")
    await stand.run()
    assert stand.cloud.sources[0].acknowledged == []
    assert stand.tried.heard


# -- what a cloud cannot do ----------------------------------------------------------------------------------


async def test_a_spot_machine_that_cannot_be_stopped_says_how_it_is_shown(stand):
    stand.cloud.faults["stop"] = [Misconfigured("a one-time spot machine")]
    assert await stand.run() == [*well(*LIFE), ("stopped", State.SKIPPED), *well(*TAKEN, *END)]
    assert "--market on-demand" in stand.texts["stopped"].advice


async def test_a_cloud_without_stops_and_preemptions(stand):
    stand.changes = {"stops": False, "preemption": None, "preempt": None, "sources": ()}
    assert await stand.run() == [
        *well(*LIFE),
        ("stopped", State.SKIPPED),
        ("preempted", State.SKIPPED),
        *well(*END),
    ]


async def test_an_on_demand_machine_is_not_preempted():
    stand = Stand(Market.ON_DEMAND)
    assert await stand.run() == [*well(*LIFE, *TURN), ("preempted", State.SKIPPED), *well(*END)]
    assert stand.cloud.calls["preempt"] == 0


async def test_who_may_not_preempt_reads_which_right_lacks(stand):
    stand.cloud.faults["preempt"] = [Denied("not authorised")]
    assert await stand.run() == [*well(*LIFE, *TURN), ("preempted", State.SKIPPED), *well(*END)]
    assert stand.texts["preempted"].advice == "it needs a right"


async def test_a_preemption_whose_answer_is_lost_is_waited_for(stand):
    stand.cloud.faults["preempt"] = [Uncertain("lost")]
    assert await stand.run() == [
        *well(*LIFE, *TURN),
        ("preempted", State.WARN),
        ("noticed", State.FAIL),
        ("taken", State.FAIL),
        *well(*END),
    ]


# -- notices -------------------------------------------------------------------------------------------------


async def test_a_notice_that_never_comes(stand):
    stand.cloud.sources[0].silent = True
    assert await stand.run() == [
        *well(*LIFE, *TURN, "preempted"),
        ("noticed", State.FAIL),
        *well("taken", *END),
    ]
    assert "no source told of it: aws-queue" in stand.texts["noticed"].text


async def test_a_machine_that_is_not_taken_is_ended_when_its_time_is_over(stand):
    stand.cloud.preempts = False
    found = await stand.run()
    assert ("taken", State.FAIL) in found
    assert found[-3:] == well(*END)
    assert stand.clock.now() - 1000.0 < WITHIN + 120.0
    assert any("waiting until the machine is taken" in text for text in stand.said)


async def test_each_source_tells_for_itself(stand):
    stand.cloud.sources = [
        Source(stand.clock, "one"),
        Source(stand.clock, "two", silent=True),
        Source(stand.clock, "three", breaks=CloudError("no queue")),
    ]
    stand.changes = {"unheard": {"four": "the daemon has it"}}
    await stand.run()
    told = {p.finding.text: p.finding.state for p in stand.node.steps if p.finding.subject == "noticed"}
    assert [text.partition(" heard")[0] for text, state in told.items() if state is State.OK] == ["one"]
    assert "three was not listened to: CloudError: no queue" in told
    assert "four was not listened to: the daemon has it" in told
    assert told["said nothing: two"] is State.SKIPPED


async def test_a_source_that_tells_after_the_end_is_heard(stand):
    stand.cloud.sources[0].late = 15.0
    assert await stand.run() == well(*LIFE, *TURN, *TAKEN, *END)
    assert 15.0 <= stand.tried.heard[0].after < 20.0


async def test_an_end_that_is_not_listed_as_a_reclaim_is_told(stand):
    stand.cloud.ending = Ending.FAULT
    await stand.run()
    assert (stand.texts["taken"].state, "fault" in stand.texts["taken"].text) == (State.WARN, True)


async def test_why_a_machine_was_taken_is_told_once_it_is_gone(stand):
    stand.cloud.told_later = True
    assert await stand.run() == well(*LIFE, *TURN, *TAKEN, *END)


async def test_a_machine_that_ends_for_long_is_told_without_a_cause(stand):
    stand.cloud.told_later, stand.cloud.ending = True, Ending.UNKNOWN
    stand.cloud.faults["preempt"] = [None]
    stand.cloud.interrupt = lambda call, _n: (
        setattr(stand.cloud, "ending_looks", 10_000) if call == "preempt" else None
    )
    found = await stand.run()
    assert ("taken", State.WARN) in found
    assert stand.clock.now() - 1000.0 < field_steps.TURN + field_steps.GONE + 120.0


async def test_the_agent_is_waited_for_before_the_preemption(stand):
    looks = iter([False] * 50 + [True] * 1000)
    stand.agent = lambda node: next(looks)
    assert await stand.run() == well(*LIFE, "agent heard", *TURN, *TAKEN, *END)


async def test_an_agent_that_says_nothing_has_the_time_of_a_boot(stand):
    stand.agent = lambda node: False
    found = await stand.run()
    assert ("agent heard", State.WARN) in found
    assert found[-3:] == well(*END)


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [InsufficientCapacity("none"), Denied("no")])
async def test_a_refused_launch_leaves_nothing(stand, error):
    stand.cloud.faults["launch"] = [error]
    assert (await stand.run())[-1] == ("accepted", State.FAIL)
    assert (stand.cloud.machines, stand.tried.certain) == ({}, True)


async def test_a_launch_that_cannot_be_written_down_is_not_asked_for(stand):
    def noted(_request, _node):
        raise OSError(28, "No space left on device")

    stand.node._noted = noted
    assert await stand.run() == [("accepted", State.FAIL)]
    assert stand.cloud.calls["launch"] == 0
    assert stand.tried.certain


async def test_a_lost_answer_is_asked_for_again(stand):
    stand.cloud.faults["launch"] = [Uncertain("lost"), Throttled("too many")]
    assert await stand.run() == well(*LIFE, *TURN, *TAKEN, *END)
    assert len(stand.cloud.machines) == 1


async def test_an_outcome_that_stays_unknown_is_for_people_to_end(stand):
    stand.cloud.faults["launch"] = [Uncertain("lost")] * 1000
    assert (await stand.run())[-1] == ("ended", State.FAIL)
    assert "Name=client-token,Values=field-test/0123-0" in stand.texts["ended"].advice
    assert not stand.tried.certain


async def test_a_replay_that_launches_a_second_machine_fails_and_both_end(stand):
    stand.cloud.doubles = True
    found = await stand.run()
    assert ("replayed", State.FAIL) in found
    assert "i-9 beside i-0" in stand.texts["replayed"].text
    assert (stand.cloud.living, stand.tried.certain) == ([], True)


@pytest.mark.parametrize("how", ["same", "another", "unlisted", "unsaid"])
async def test_a_replay_after_the_end_that_launches_fails_and_its_machine_ends(stand, how):
    stand.cloud.doubles_after_the_end = how
    found = await stand.run()
    assert ("replayed after the end", State.FAIL) in found
    assert found[-1] == ("ended", State.OK)
    assert (stand.cloud.living, stand.tried.certain) == ([], True)


async def test_a_machine_that_dies_is_ended_and_replayed_all_the_same(stand):
    stand.cloud.dies, stand.cloud.pending = "Client.InternalError", 2
    found = await stand.run()
    assert any(state is State.FAIL for _, state in found)
    assert found[-3:] == well(*END)


async def test_a_machine_that_never_runs_has_the_time_of_a_boot(stand):
    stand.cloud.pending = 10_000
    found = await stand.run()
    assert ("running", State.FAIL) in found
    assert found[-3:] == well(*END)
    assert stand.clock.now() - 1000.0 < BOOT + 60.0


async def test_a_start_without_room_ends_the_test_of_that_machine(stand):
    stand.cloud.faults["start"] = [InsufficientCapacity("none")]
    found = await stand.run()
    assert found[4:6] == [("stopped", State.OK), ("started", State.WARN)]
    assert found[6:] == well(*END)


async def test_a_stop_is_asked_for_until_it_is_accepted(stand):
    stand.cloud.faults["stop"] = [CloudError("pending"), Throttled("too many"), Uncertain("lost")]
    assert await stand.run() == well(*LIFE, *TURN, *TAKEN, *END)


async def test_an_end_that_is_refused_is_for_people_and_nothing_is_replayed(stand):
    stand.cloud.faults["preempt"] = [Denied("no")]
    stand.cloud.faults["terminate"] = [Denied("no")] * 1000
    found = await stand.run()
    assert [step for step in found if step[0] == "ended"] == [("ended", State.FAIL)] == found[-1:]
    assert stand.texts["ended"].advice == "aws ec2 terminate-instances --region us-east-1 --instance-ids i-0"
    assert not stand.tried.certain
    assert stand.cloud.calls["launch"] == 2


async def test_a_machine_that_stays_in_the_list_is_for_people(stand):
    stand.cloud.faults["preempt"] = [Denied("no")]
    stand.cloud.ending_looks = 10_000
    found = await stand.run()
    assert found[-1] == ("gone", State.FAIL)
    assert "i-0" in stand.texts["gone"].advice


async def test_a_call_that_hangs_keeps_no_machine_beyond_its_time(stand, monkeypatch):
    monkeypatch.setattr(field_steps, "longest", lambda **_: 0.05)

    async def hang(_machine):
        await asyncio.Event().wait()

    stand.changes = {"preempt": hang}
    found = await stand.run()
    assert ("time", State.FAIL) in found
    assert found[-3:] == well(*END)


@pytest.mark.parametrize(
    ("call", "number"),
    [("launch", 1), ("launch", 2), ("launch", 3), ("list", 1), ("stop", 1), ("preempt", 1), ("terminate", 1)],
)
async def test_whenever_it_is_interrupted_the_machine_is_ended(stand, call, number):
    running = asyncio.create_task(stand.run())

    def cancel(name, count):
        if (name, count) == (call, number):
            asyncio.get_running_loop().call_soon(running.cancel)

    stand.cloud.interrupt = cancel
    await running
    assert (stand.cloud.living, stand.tried.certain) == ([], True)
    assert "interrupted" in stand.texts


async def test_an_interruption_while_the_replay_after_the_end_launches_ends_that_too(stand):
    stand.cloud.doubles_after_the_end = "same"
    running = asyncio.create_task(stand.run())
    stand.cloud.interrupt = lambda call, n: running.cancel() if (call, n) == ("launch", 3) else None
    await running
    assert (stand.cloud.living, stand.tried.certain) == ([], True)
