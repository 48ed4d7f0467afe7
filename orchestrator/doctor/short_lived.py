"""One node that is launched as the daemon would launch it, for a look, and ended in any case.

The launch carries the pool's tag, which permissions ask for, and a token that no daemon takes for its own:
see `policies.evidence.ours`. Whatever happens after the launch was asked for, what it made is ended: its
outcome is asked for again with the same token until it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

from cloud.errors import CloudError, Denied, InsufficientCapacity, QuotaExceeded, Throttled, Uncertain
from cloud.ports import Clock, EngineCommand, Instances, LaunchRequest
from orchestrator.doctor.findings import Finding, fail, ok, skipped, warn
from orchestrator.words import age, money
from policies.model import Instance, InstanceState, Offering

PAUSE: Final = 2.0
"""Seconds between two looks."""

ENDED: Final = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
"""States of a machine that has ended or is about to."""

_ASKS: Final = 30  # times that an unknown outcome, or an end, is asked for
_CONSOLE: Final = 15.0  # s for the console
_LINES: Final = 20

Said = Callable[[str], None]
"""Gets what happens, in words, as it happens. May raise OSError when nobody listens any more."""

Noted = Callable[[LaunchRequest, str], None]
"""Gets a launch before it is asked for, and again with the machine's id. OSError before a launch stops it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A step, in the words of a finding, and the seconds since the launch was asked for."""

    finding: Finding
    seconds: float


class Failed(Exception):
    """A step was not reached."""

    def __init__(self, step: str, text: str, advice: str) -> None:
        super().__init__(text)
        self.step, self.advice = step, advice


def _not_noted(_request: LaunchRequest, _node: str) -> None:
    """Nothing is written down."""


class ShortLived:
    """One node, its steps so far, and its end.

    `offerings` are taken in their order until one can be had. `said` is called with each step. `token` names
    the launch. `by_hand` gives people the command that ends a machine, from its region, its id (empty when it
    is not known) and its token.
    """

    def __init__(
        self,
        *,
        instances: Instances,
        clock: Clock,
        pool: str,
        command: EngineCommand,
        offerings: Sequence[Offering],
        token: str,
        said: Said,
        by_hand: Callable[[str, str, str], str],
        noted: Noted = _not_noted,
    ) -> None:
        self.steps: list[Passed] = []
        self.said = said
        self.request: LaunchRequest | None = None
        self.machine: Instance | None = None  # as it was seen last
        self.price: float | None = None
        self.begun = clock.now()
        self._instances, self._clock = instances, clock
        self._pool, self._command, self._offerings, self._token = pool, command, offerings, token
        self._by_hand, self._noted = by_hand, noted
        self._asking: asyncio.Task[Instance] | None = None  # whose outcome nobody took yet
        self._living: list[str] = []  # ids that were launched, and whose end was not accepted yet
        self._over: set[str] = set()  # ids whose end was accepted
        self._given_up = False  # an end that could not be had

    async def through(
        self,
        follow: Callable[[Instance], Awaitable[None]],
        after_failure: Callable[[], Awaitable[None]] | None = None,
    ) -> Sequence[Passed]:
        """Launch, follow, end. Never raises for what the cloud or the node does; when it is cancelled it ends
        the node, and says in its last step that it was interrupted."""
        self.begun = self._clock.now()
        try:
            try:
                await follow(await self._launched())
            except Failed as error:
                self.failed(error)
                if after_failure is not None:
                    await after_failure()
        except asyncio.CancelledError:
            self.passed(fail("it was interrupted", "run it again", "interrupted"))
        finally:
            await surely(self.end())
        return self.steps

    def take_up(self, request: LaunchRequest, node: str) -> None:
        """Go on with a launch of an earlier process, whose machine is `node`, or is asked for where that is
        empty. `end` ends it."""
        self.request = request
        if node:
            self._living.append(node)
        else:
            self._asking = asyncio.create_task(self._asked(request))

    async def replayed(self) -> Instance:
        """What the launch comes to when it is asked for once more. What that made is ended too."""
        if self.request is None:
            raise ValueError("nothing was launched that could be asked for again")
        self._asking = asyncio.create_task(self._asked(self.request))
        return self._taken(await asyncio.shield(self._asking))

    # -- launching ---------------------------------------------------------------------------------

    async def _launched(self) -> Instance:
        for number, offering in enumerate(self._offerings):
            request = LaunchRequest(
                token=f"{self._token}-{number}",
                pool=self._pool,
                placement=offering.placement,
                command=self._command.at(offering.placement.instance_type),
            )
            try:
                self._noted(request, "")
            except OSError as error:
                text = f"it cannot be written down that it is launched: {error}"
                raise Failed("accepted", text, "give this user a state directory that it can write") from None
            self.request, self.price = request, offering.price
            self.tell(f"launching {offering.placement}")
            self._asking = asyncio.create_task(self._asked(request))
            try:
                machine = self._taken(await asyncio.shield(self._asking))
            except (InsufficientCapacity, QuotaExceeded) as error:
                self.request = self._asking = None
                self.passed(warn(str(error), "add types, zones or regions", str(offering.placement)))
                continue
            except CloudError as error:
                raise Failed("accepted", str(error), "fix what it says") from error
            self.machine = machine
            with contextlib.suppress(OSError):  # the token leads to it too
                self._noted(request, machine.id)
            self.passed(ok(f"{machine.id}: {offering.placement}", "accepted"))
            return machine
        raise Failed("accepted", "no launch was accepted anywhere", "add types, zones or regions")

    async def _asked(self, request: LaunchRequest) -> Instance:
        """Ask until the outcome is known: the token makes the same launch of it.

        Raises CloudError. Who is throttled or denied learns nothing of what an earlier call did, so that is
        Uncertain after a call whose answer was lost.
        """
        unsure = False
        for _ in range(_ASKS):
            try:
                return await self._instances.launch(request)
            except (Throttled, Uncertain, Denied) as error:
                unsure = unsure or isinstance(error, Uncertain)
                if isinstance(error, Denied) and not unsure:
                    raise
                self.tell(f"asked again: {error}")
                failure = error
                await self._clock.sleep(PAUSE)
        raise Uncertain(str(failure)) if unsure else failure

    def _taken(self, machine: Instance) -> Instance:
        """A machine that a launch made, which is to be ended."""
        self._asking = None
        self.mind(machine.id, again=machine.state not in ENDED)
        return machine

    def mind(self, node: str, *, again: bool) -> None:
        """End that machine too; `again`: also where its end was accepted before, as a machine that is named
        after its token may come back under the same id."""
        if not node or node in self._living or (node in self._over and not again):
            return
        self._living.append(node)

    def by_hand(self, node: str) -> str:
        """What a person types to end that machine, or the one of the token where it is empty."""
        request = self.request
        return "" if request is None else self._by_hand(request.placement.region, node, request.token)

    # -- looking -----------------------------------------------------------------------------------

    async def listed(self) -> Sequence[Instance]:
        """What is listed with the pool's tag where the machine is. Raises CloudError."""
        if self.request is None:
            return ()
        return await self._instances.list(self._pool, self.request.placement.region)

    async def look(self, step: str) -> Instance:
        """The machine as the provider shows it; as last seen while lists lag or fail.

        Raises Failed, of that step, once it ended.
        """
        if self.machine is None:
            raise ValueError("nothing was launched yet")
        try:
            listed = await self.listed()
        except CloudError as error:
            self.tell(f"not listed: {error}")
            return self.machine
        found = next((one for one in listed if one.id == self.machine.id), None)
        if found is None:
            return self.machine
        self.machine = found
        if found.state in ENDED:
            why = f": {found.ending_why}" if found.ending_why else ""
            advice = "fix what it says: the daemon's machines end in the same way"
            raise Failed(step, f"{found.id} ended by itself{why}", advice)
        return found

    async def console(self) -> None:
        """Show the end of what the machine wrote."""
        if self.machine is None:
            return
        try:
            async with asyncio.timeout(_CONSOLE):
                text = await self._instances.console(self.machine.id)
        except (CloudError, TimeoutError) as error:
            self.passed(skipped(f"it cannot be read: {error or 'no answer'}", subject="console"))
            return
        lines = text.strip().splitlines()[-_LINES:]
        nothing = "the machine wrote nothing that the provider shows yet"
        self.passed(skipped("\n".join(lines) if lines else nothing, subject="console"))

    # -- ending ------------------------------------------------------------------------------------

    async def end(self) -> bool:
        """End what was launched, and say whether that is certain, in a step too. Never raises a CloudError;
        what could not be ended once is not tried again."""
        node = ""
        if self.request is None or self._given_up:
            return not self._given_up
        try:
            await self._outcome()
            for node in tuple(self._living):
                self.tell(f"ending {node}")
                await self._terminated(node)
                self._living.remove(node)
                self._over.add(node)
        except CloudError as error:
            self._given_up = True
            text = f"it may still run and cost money: {error}"
            self.passed(fail(text, self.by_hand(node), "ended"))
            return False
        if node:
            lived = self._clock.now() - self.begun
            cost = f", about {money(self.price * lived / 3600.0)}" if self.price is not None else ""
            self.passed(ok(f"{node} is ending; it lived {age(lived)}{cost}", "ended"))
        return True

    async def _outcome(self) -> None:
        """Take up what a launch made that nobody waited for. Raises Uncertain."""
        if self._asking is None:
            return
        try:
            self._taken(await self._asking)
        except Uncertain:
            raise
        except CloudError:
            self._asking = None

    async def _terminated(self, node: str) -> None:
        for _ in range(_ASKS):
            try:
                return await self._instances.terminate(node)
            except CloudError as error:
                self.tell(f"not ended yet: {error}")
                failure = error
                await self._clock.sleep(PAUSE)
        raise failure

    # -- telling -----------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Say it, if anybody listens: a pipe or terminal that went away must not keep the node alive."""
        with contextlib.suppress(OSError):
            self.said(text)

    def failed(self, error: Failed) -> None:
        """A step that was not reached."""
        self.passed(fail(str(error), error.advice, error.step))

    def passed(self, finding: Finding) -> None:
        """A step."""
        seconds = max(0.0, self._clock.now() - self.begun)
        self.steps.append(Passed(finding=finding, seconds=seconds))
        self.tell(f"{seconds:7.1f} s  {finding.state:7}  {finding.subject}: {finding.text}")


async def surely(work: Coroutine[None, None, object]) -> None:
    """Do it to its end, even when this is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
