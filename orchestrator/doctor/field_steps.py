"""A field test: one node on the user's account goes through all that a pool asks of its cloud.

It is launched, its token is replayed, it is listed, stopped and started, taken as the cloud takes spot
machines, ended, looked for, and its token is replayed once more. Each step says how long it took; what the
cloud cannot do is skipped with the reason. What was launched is ended in any case: see
`orchestrator.doctor.short_lived`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud.errors import CloudError, Denied, InsufficientCapacity, Misconfigured, NotFound, Uncertain
from cloud.kinds import Preemption
from cloud.ports import Clock, Instances, Notices
from orchestrator.doctor.findings import fail, ok, skipped, warn
from orchestrator.doctor.short_lived import ENDED, PAUSE, Failed, Passed, ShortLived
from orchestrator.words import age, short_time
from policies.model import Ending, Instance, InstanceState, Market, Notice

TURN: Final = 300.0
"""Seconds for one stop or one start."""
GONE: Final = 600.0
"""Seconds until a machine whose end was accepted is gone."""
ENDING: Final = 400.0
"""Seconds for which an end is asked for."""

_LATE: Final = 30.0  # s for sources that tell of a machine that was taken already
_TOLD: Final = 30.0  # s between two words on what is waited for
_LOOKS: Final = 15  # at a list that fails, after the end
_STOPPED: Final = (InstanceState.STOPPING, InstanceState.STOPPED)

Preempt = Callable[[Instance], Awaitable[None]]
"""Has the cloud take a machine; returns once that was accepted. Raises CloudError."""

NEEDED: Final = ("accepted", "replayed", "listed", "running", "ended", "gone", "replayed after the end")
"""Steps without which nothing is proved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A notice: its source, seconds from the request to it, and from it to its deadline if it has one."""

    source: str
    after: float
    left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """What is tested. `stops`: whether it can stop machines at all. `preemption` and `preempt` are None where
    it cannot be asked to take one. `sources`: those that are listened to; `unheard` says of others why not.
    `agent` is whether the machine's agent was heard; None where no agent can be."""

    instances: Instances
    stops: bool
    preemption: Preemption | None
    preempt: Preempt | None
    sources: Sequence[Notices] = ()
    unheard: Mapping[str, str] = field(default_factory=dict)
    agent: Callable[[str], bool] | None = None


def longest(*, boot: float, stops: bool, taken: float) -> float:
    """Seconds for which the machine may live at most. `stops`: whether it is stopped and started; `taken`: s
    for which a preemption is waited for, 0 where none is asked for."""
    return boot + (2 * TURN if stops else 0.0) + (taken + TURN if taken else 0.0) + ENDING + GONE


class FieldTest:
    """One test of one cloud. `boot`: s until the machine runs and its agent is heard."""

    def __init__(self, node: ShortLived, cloud: Cloud, clock: Clock, *, boot: float) -> None:
        self.node = node
        self.heard: list[Heard] = []
        self.certain = False  # nothing is left that costs money
        self._cloud, self._clock, self._boot = cloud, clock, boot
        self._notices: dict[
            str, tuple[float, Notice]
        ] = {}  # the first of each source, with when it was heard
        self._broken: dict[str, str] = {}  # sources that ended, with why

    async def run(self) -> Sequence[Passed]:
        """Every step. Never raises for what the cloud does."""
        try:
            return await self.node.through(self._follow)
        finally:
            self.certain = await self.node.end()

    async def _follow(self, machine: Instance) -> None:
        within = 0.0 if self._cloud.preemption is None else self._cloud.preemption.within
        listening = [asyncio.create_task(self._listen(source)) for source in self._cloud.sources]
        try:
            async with asyncio.timeout(longest(boot=self._boot, stops=self._cloud.stops, taken=within)):
                await self._live(machine)
        except TimeoutError:
            text = "it has had its time, and what it waited for has not come"
            self.node.failed(Failed("time", text, "look at the last step, and run it again"))
        except Failed as error:
            self.node.failed(error)
        finally:
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
        if await self.node.end() and await self._gone(machine):
            await self._replayed_after_the_end(machine)

    async def _live(self, machine: Instance) -> None:
        await self._replayed(machine)
        await self._running()
        await self._agent(machine)
        if await self._turned(machine):
            await self._taken(machine)

    # -- the launch --------------------------------------------------------------------------------

    async def _replayed(self, machine: Instance) -> None:
        step = "replayed"
        try:
            again = await self.node.replayed()
        except CloudError as error:
            self.node.passed(fail(str(error), "report it: a launch must be known by its token", step))
            return
        if again.id != machine.id:
            text = f"the same token launched {again.id} beside {machine.id}"
            self.node.passed(fail(text, "report it: a pool would pay for both", step))
        else:
            self.node.passed(ok(f"the same token gives {again.id}", step))

    async def _running(self) -> None:
        """Until it is listed, and runs. Raises Failed."""
        seen = False
        while True:
            found = await self.node.look("running")
            if not seen and await self._is_listed(found.id):
                seen = True
                self.node.passed(ok(f"{found.id} with the pool's tag and its token", "listed"))
            if seen and found.state is InstanceState.RUNNING:
                self.node.passed(ok(found.id, "running"))
                return
            waited = self._clock.now() - self.node.begun
            if waited >= self._boot:
                text = f"{found.id} is {found.state if seen else 'not listed'} after {age(self._boot)}"
                raise Failed("running" if seen else "listed", text, "look at the console of the cloud")
            await self._wait("the machine runs", waited, self._boot)

    async def _is_listed(self, node: str) -> bool:
        try:
            listed = await self.node.listed()
        except CloudError:
            return False
        mine = next((one for one in listed if one.id == node), None)
        request = self.node.request
        return mine is not None and request is not None and mine.token == request.token

    async def _agent(self, machine: Instance) -> None:
        """Until the machine's agent is heard: only then can it tell of a notice."""
        if self._cloud.agent is None:
            return
        while not self._cloud.agent(machine.id):
            await self.node.look("agent heard")
            waited = self._clock.now() - self.node.begun
            if waited >= self._boot:
                advice = "orchestrator doctor --try-node shows how far a node comes, with its console"
                self.node.passed(warn(f"its agent said nothing in {age(self._boot)}", advice, "agent heard"))
                return
            await self._wait("its agent is heard", waited, self._boot)
        self.node.passed(ok(machine.id, "agent heard"))

    # -- stop and start ----------------------------------------------------------------------------

    async def _turned(self, machine: Instance) -> bool:
        """Stop it and start it again. Whether it runs."""
        if not self._cloud.stops:
            self.node.passed(skipped("this cloud stops no machines", subject="stopped"))
            return True
        try:
            await self._insisted(self._cloud.instances.stop, machine.id)
            await self._comes_to(InstanceState.STOPPED, "stopped", f"{machine.id} is stopped")
        except Misconfigured as error:
            where = "--market on-demand shows it" if machine.placement.market is Market.SPOT else ""
            self.node.passed(skipped(str(error), where, "stopped"))
            return True
        except CloudError as error:
            self.node.passed(fail(str(error), "fix what it says", "stopped"))
            return True
        try:
            await self._insisted(self._cloud.instances.start, machine.id)
            await self._comes_to(InstanceState.RUNNING, "started", f"{machine.id} runs again")
        except InsufficientCapacity as error:
            self.node.passed(warn(str(error), "it is room that lacks; run it at another time", "started"))
            return False
        except CloudError as error:
            self.node.passed(fail(str(error), "fix what it says", "started"))
            return False
        return True

    async def _insisted(self, call: Callable[[str], Awaitable[None]], node: str) -> None:
        """Ask until it is accepted, as long as that can help. Raises CloudError."""
        until = self._clock.now() + TURN / 2
        while True:
            try:
                return await call(node)
            except (Misconfigured, Denied, NotFound, InsufficientCapacity):
                raise
            except CloudError as error:
                if self._clock.now() >= until:
                    raise
                self.node.tell(f"asked again: {error}")
                await self._clock.sleep(PAUSE)

    async def _comes_to(self, state: InstanceState, step: str, text: str) -> None:
        """Raises Failed where it is not in that state in time."""
        since = self._clock.now()
        while (found := await self.node.look(step)).state is not state:
            waited = self._clock.now() - since
            if waited >= TURN:
                late = f"{found.id} is {found.state} after {age(TURN)}"
                raise Failed(step, late, "look at the console of the cloud")
            await self._wait(f"it is {state}", waited, TURN)
        self.node.passed(ok(f"{text} after {short_time(self._clock.now() - since)}", step))

    # -- preemption --------------------------------------------------------------------------------

    async def _taken(self, machine: Instance) -> None:
        """Have the cloud take it, and see who tells."""
        step, by = "preempted", self._cloud.preemption
        if by is None or self._cloud.preempt is None:
            self.node.passed(skipped("this cloud cannot be asked to take a machine", subject=step))
            return
        if machine.placement.market is not Market.SPOT:
            text = "an on-demand machine is not preempted"
            self.node.passed(skipped(text, "--market spot shows it", step))
            return
        self._notices.clear()
        since = self._clock.now()
        try:
            await self._cloud.preempt(machine)
            self.node.passed(ok(f"asked for with {by.by}", step))
        except Denied as error:
            self.node.passed(skipped(f"not allowed: {error}", f"it needs {by.right}", step))
            return
        except Uncertain as error:
            self.node.passed(warn(f"{by.by} was not answered: {error}", "what follows says more", step))
        except CloudError as error:
            self.node.passed(fail(f"{by.by}: {error}", f"it needs {by.right}", step))
            return
        ended = await self._until_taken(since, by.within)
        self._tell_notices(since)
        if ended is None:
            text = f"it still runs {age(by.within)} after that"
            self.node.passed(fail(text, "report it with this text", "taken"))
        else:
            self._tell_end(*ended)

    async def _until_taken(self, since: float, within: float) -> tuple[Instance, float] | None:
        """The machine, and how many seconds after the request it was seen to be taken; None where it stays.

        Returns once the sources have told or had their time, and it is known why it ended: some clouds say
        that of a machine that is gone, and not while it ends.
        """
        ended: Instance | None = None
        at = 0.0
        while True:
            waited = self._clock.now() - since
            if ended is None or not _settled(ended):
                at = waited if ended is None else at
                ended = await self._ended() or ended
            silent = {s.name for s in self._cloud.sources} - self._notices.keys() - self._broken.keys()
            if ended is None:
                if waited >= within:
                    return None
            elif (not silent or waited - at >= _LATE) and (_settled(ended) or waited - at >= TURN):
                return ended, at
            await self._wait("the machine is taken and its notice is heard", waited, within)

    async def _ended(self) -> Instance | None:
        """The machine where it is listed as ended or stopped, or is listed no more."""
        if self.node.machine is None:
            return None
        try:
            found = await self.node.look("taken")
        except Failed:
            return self.node.machine
        return found if found.state in _STOPPED else None

    def _tell_notices(self, since: float) -> None:
        told = "noticed"
        for name, (at, notice) in sorted(self._notices.items(), key=lambda item: item[1][0]):
            left = None if notice.deadline is None else notice.deadline - at
            self.heard.append(Heard(source=name, after=at - since, left=left))
            has = "it has no deadline" if left is None else f"{short_time(max(0.0, left))} were left"
            text = f"{name} heard {notice.kind} after {short_time(at - since)}; {has}"
            self.node.passed(ok(text, told))
        for name, why in {**self._cloud.unheard, **self._broken}.items():
            self.node.passed(skipped(f"{name} was not listened to: {why}", subject=told))
        names = [source.name for source in self._cloud.sources if source.name not in self._broken]
        silent = [name for name in names if name not in self._notices]
        if not names:
            advice = "let nodes report (agents.listen), and stop the daemon for the time of the test"
            self.node.passed(skipped("no source of notices was listened to", advice, told))
        elif not self._notices:
            advice = "orchestrator doctor --only notices looks at what lies between the cloud and here"
            self.node.passed(fail(f"no source told of it: {', '.join(silent)}", advice, told))
        elif silent:
            self.node.passed(skipped(f"said nothing: {', '.join(silent)}", subject=told))

    def _tell_end(self, ended: Instance, at: float) -> None:
        why = f" ({ended.ending_why})" if ended.ending_why else ""
        text = f"{ended.id} was seen to end after {short_time(at)}, and is {ended.state}{why}"
        if ended.state in _STOPPED or ended.ending is Ending.RECLAIM:
            self.node.passed(ok(text, "taken"))
        else:
            advice = "report it with this text: a pool would not know that it was reclaimed"
            self.node.passed(warn(f"{text}, listed with the cause {ended.ending}", advice, "taken"))

    async def _listen(self, source: Notices) -> None:
        """Take down the first notice of the machine. Nothing is acknowledged: a queue keeps what it has."""
        try:
            async for notice in source.stream():
                machine = self.node.machine
                if machine is not None and notice.node == machine.id and not notice.cancelled:
                    self._notices.setdefault(source.name, (self._clock.now(), notice))
        except Exception as error:  # a source that breaks is a finding, and the machine is ended all the same
            self._broken[source.name] = f"{type(error).__name__}: {error}"

    # -- after the end -----------------------------------------------------------------------------

    async def _gone(self, machine: Instance) -> bool:
        """Until no list shows it as living. Whether that came in time."""
        since = self._clock.now()
        while True:
            left = await self._living()
            waited = self._clock.now() - since
            if left is not None and machine.id not in left:
                self.node.passed(
                    ok(f"{machine.id}, {short_time(waited)} after its end was asked for", "gone")
                )
                return True
            if waited >= GONE:
                state = "the list fails" if left is None else f"{machine.id} is still listed"
                self.node.passed(fail(f"{state} after {age(GONE)}", self.node.by_hand(machine.id), "gone"))
                return False
            await self._wait("it is gone", waited, GONE)

    async def _replayed_after_the_end(self, machine: Instance) -> None:
        """The token must launch nothing any more. What it launches all the same is ended."""
        step, advice = "replayed after the end", "report it: a daemon that repeats a launch would pay for it"
        try:
            again = await self.node.replayed()
        except CloudError as error:
            self.node.passed(fail(f"the replay was refused: {error}", advice, step))
            await self.node.end()
            return
        made = {again.id} if again.state not in ENDED else set()
        for _ in range(_LOOKS):
            left = await self._living()
            if left is not None:
                break
            await self._clock.sleep(PAUSE)
        else:
            self.node.passed(fail("whether it launched one cannot be seen: the list fails", advice, step))
            await self.node.end()
            return
        for node in sorted(made := made | set(left)):
            self.node.mind(node, again=True)
        if made:
            text = f"the token launched {', '.join(sorted(made))} once {machine.id} had ended"
            self.node.passed(fail(text, advice, step))
        else:
            self.node.passed(ok("the token launches nothing any more", step))
        await self.node.end()

    async def _living(self) -> list[str] | None:
        """Ids of machines of the token that live by the list, or are ending; None where the list fails."""
        request = self.node.request
        try:
            listed = await self.node.listed()
        except CloudError as error:
            self.node.tell(f"not listed: {error}")
            return None
        mine = [one for one in listed if request is not None and one.token == request.token]
        return [one.id for one in mine if one.state is not InstanceState.TERMINATED]

    async def _wait(self, what: str, waited: float, within: float) -> None:
        """Pause, with a word every half minute."""
        if waited // _TOLD > (waited - PAUSE) // _TOLD and waited >= _TOLD:
            self.node.tell(f"waiting until {what}: {age(waited)} of {age(within)} at most")
        await self._clock.sleep(PAUSE)


def _settled(ended: Instance) -> bool:
    """Whether what a list says of an end will not change: that it has ended, or why."""
    return ended.state is not InstanceState.SHUTTING_DOWN or ended.ending is not Ending.UNKNOWN
