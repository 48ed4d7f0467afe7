"""One node that is launched as the daemon would launch it, followed until it answers, and ended in any case.

The launch carries the pool's tag, which permissions ask for, and a token that no daemon takes for its own:
see `policies.evidence.ours`. Whatever happens after the launch was asked for, what it made is ended: its
outcome is asked for again with the same token until it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

from cloud.errors import CloudError, InsufficientCapacity, QuotaExceeded, Throttled, Uncertain
from cloud.ports import Clock, EngineCommand, Instances, LaunchRequest
from orchestrator.doctor import reach
from orchestrator.doctor.findings import Finding, fail, ok, skipped, warn
from orchestrator.words import age, money
from policies.model import Instance, InstanceState, Offering

PAUSE: Final = 2.0
"""Seconds between two looks."""

_AFTER_HEALTH: Final = 60.0  # s for a step of an engine that says that it is healthy
_ASKS: Final = 30  # times that an unknown outcome, or an end, is asked for
_CONSOLE: Final = 15.0  # s for the console
_LINES: Final = 20
_ENDED: Final = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)

Said = Callable[[str], None]
"""Told what happens, in words, as it happens. May raise OSError when nobody listens any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A step of a trial, in the words of a finding, and the seconds since the launch was asked for."""

    finding: Finding
    seconds: float


class _Failed(Exception):
    """A step was not reached."""

    def __init__(self, step: str, text: str, advice: str) -> None:
        super().__init__(text)
        self.step, self.advice = step, advice


class Trial:
    """One try. `offerings` are taken in their order until one can be had; `within` is s for the whole boot.

    `said` is called with each step. `token` names the launch. `by_hand` gives people the command that ends a
    machine, from its region, its id (empty when it is not known) and its token.
    """

    def __init__(
        self,
        *,
        instances: Instances,
        engine: reach.Engine,
        clock: Clock,
        pool: str,
        command: EngineCommand,
        offerings: Sequence[Offering],
        token: str,
        within: float,
        said: Said,
        by_hand: Callable[[str, str, str], str],
    ) -> None:
        self._instances, self._engine, self._clock = instances, engine, clock
        self._pool, self._command, self._offerings = pool, command, offerings
        self._token, self._within, self._said, self._by_hand = token, within, said, by_hand
        self._steps: list[Passed] = []
        self._request: LaunchRequest | None = None
        self._launching: asyncio.Task[Instance] | None = None
        self._machine: Instance | None = None
        self._price: float | None = None
        self._begun = clock.now()

    async def run(self) -> Sequence[Passed]:
        """Launch, follow, end. Never raises for what AWS or the node does; when it is cancelled it ends the
        node, and says in its last step that it was interrupted."""
        self._begun = self._clock.now()
        try:
            try:
                await self._follow(await self._launched())
            except _Failed as error:
                self._pass(fail(str(error), error.advice, error.step))
                await self._console()
        except asyncio.CancelledError:
            self._pass(fail("it was interrupted", "run it again", "interrupted"))
        finally:
            await self._surely(self._end())
        return self._steps

    async def _surely(self, work: Coroutine[None, None, None]) -> None:
        """Do it to its end, even when this is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise

    # -- launching ---------------------------------------------------------------------------------

    async def _launched(self) -> Instance:
        for number, offering in enumerate(self._offerings):
            self._request = LaunchRequest(
                token=f"{self._token}-{number}",
                pool=self._pool,
                placement=offering.placement,
                command=self._command.at(offering.placement.instance_type),
            )
            self._price = offering.price
            self._tell(f"launching {offering.placement}")
            self._launching = asyncio.create_task(self._asked(self._request))
            try:
                machine = await asyncio.shield(self._launching)
            except (InsufficientCapacity, QuotaExceeded) as error:
                self._request = None
                self._pass(warn(str(error), "add types, zones or regions", str(offering.placement)))
                continue
            except CloudError as error:
                raise _Failed("accepted", str(error), "fix what it says") from error
            self._machine = machine
            self._pass(ok(f"{machine.id}: {offering.placement}", "accepted"))
            return machine
        raise _Failed("accepted", "no launch was accepted anywhere", "add types, zones or regions")

    async def _asked(self, request: LaunchRequest) -> Instance:
        """Ask until the outcome is known: the token makes the same launch of it. Raises CloudError."""
        for _ in range(_ASKS):
            try:
                return await self._instances.launch(request)
            except (Throttled, Uncertain) as error:
                self._tell(f"asked again: {error}")
                unknown = error
                await self._clock.sleep(PAUSE)
        raise unknown

    # -- following ---------------------------------------------------------------------------------

    async def _follow(self, machine: Instance) -> None:
        running = "running"
        while True:
            found = await self._look(machine, running)
            if found.state is InstanceState.RUNNING:
                break
            self._in_time(running, f"{found.id} is {found.state}", "look at the quota and at EC2's status")
            await self._clock.sleep(PAUSE)
        self._pass(ok(found.id, running))
        while not found.address:
            self._in_time("address", f"{found.id} has no private address", "look at its network interface")
            await self._clock.sleep(PAUSE)
            found = await self._look(machine, "address")
        self._pass(ok(found.address, "address"))
        for step in reach.Step:
            await self._come_to(step, found)

    async def _come_to(self, step: reach.Step, machine: Instance) -> None:
        since = self._clock.now()
        while (trouble := await reach.reached(self._engine, step, machine.address)) is not None:
            advice = reach.advice(trouble, machine)
            self._in_time(step, trouble.text, advice)
            healthy = step in (reach.Step.MODEL, reach.Step.SPEAKS)
            if healthy and self._clock.now() - since >= _AFTER_HEALTH:
                raise _Failed(step, f"the engine is healthy, and {trouble.text}", advice)
            await self._clock.sleep(PAUSE)
            await self._look(machine, step)
        self._pass(ok(machine.address, step))

    async def _look(self, machine: Instance, step: str) -> Instance:
        """The machine as the provider shows it; as last seen while lists lag or fail."""
        try:
            listed = await self._instances.list(self._pool, machine.placement.region)
        except CloudError as error:
            self._tell(f"not listed: {error}")
            return self._machine or machine
        found = next((one for one in listed if one.id == machine.id), None)
        if found is None:
            return self._machine or machine
        self._machine = found
        if found.state in _ENDED:
            why = f": {found.ending_why}" if found.ending_why else ""
            advice = "fix what it says: the daemon's machines end in the same way"
            raise _Failed(step, f"{found.id} ended by itself{why}", advice)
        return found

    def _in_time(self, step: str, text: str, advice: str) -> None:
        """Raises _Failed when the boot has had its time."""
        if self._clock.now() - self._begun >= self._within:
            spent = f"{text}, {age(self._within)} after the launch (health.boot_timeout)"
            raise _Failed(step, spent, advice)

    async def _console(self) -> None:
        if self._machine is None:
            return
        try:
            async with asyncio.timeout(_CONSOLE):
                text = await self._instances.console(self._machine.id)
        except (CloudError, TimeoutError) as error:
            self._pass(skipped(f"it cannot be read: {error or 'no answer'}", subject="console"))
            return
        lines = text.strip().splitlines()[-_LINES:]
        nothing = "the machine wrote nothing that the provider shows yet"
        self._pass(skipped("\n".join(lines) if lines else nothing, subject="console"))

    # -- ending ------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """End what was launched, and say whether that is certain. Never raises a CloudError."""
        request, node = self._request, ""
        if request is None:
            return
        try:
            machine = self._machine or await self._outcome()
            if machine is None:
                return
            node = machine.id
            self._tell(f"ending {node}")
            await self._terminated(node)
        except CloudError as error:
            advice = self._by_hand(request.placement.region, node, request.token)
            self._pass(fail(f"it may still run and cost money: {error}", advice, "ended"))
            return
        lived = self._clock.now() - self._begun
        cost = f", about {money(self._price * lived / 3600.0)}" if self._price is not None else ""
        self._pass(ok(f"{node} is ending; it lived {age(lived)}{cost}", "ended"))

    async def _outcome(self) -> Instance | None:
        """What the launch made that nobody waited for; None for nothing. Raises Uncertain."""
        if self._launching is None:
            return None
        try:
            return await self._launching
        except Uncertain:
            raise
        except CloudError:
            return None

    async def _terminated(self, node: str) -> None:
        for _ in range(_ASKS):
            try:
                return await self._instances.terminate(node)
            except CloudError as error:
                self._tell(f"not ended yet: {error}")
                failure = error
                await self._clock.sleep(PAUSE)
        raise failure

    def _tell(self, text: str) -> None:
        """Say it, if anybody listens: a pipe or terminal that went away must not keep the node alive."""
        with contextlib.suppress(OSError):
            self._said(text)

    def _pass(self, finding: Finding) -> None:
        seconds = max(0.0, self._clock.now() - self._begun)
        self._steps.append(Passed(finding=finding, seconds=seconds))
        self._tell(f"{seconds:7.1f} s  {finding.state:7}  {finding.subject}: {finding.text}")
