"""A try of one node: it is launched as the daemon would launch it, followed until its engine answers, and
ended in any case: see `orchestrator.doctor.short_lived`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cloud.ports import Clock, EngineCommand, Instances
from orchestrator.doctor import reach
from orchestrator.doctor.findings import ok
from orchestrator.doctor.short_lived import PAUSE, Failed, Passed, Said, ShortLived
from orchestrator.words import age
from policies.model import Instance, InstanceState, Offering

_AFTER_HEALTH: Final = 60.0  # s for a step of an engine that says that it is healthy


class Trial:
    """One try. `within` is s for the whole boot; for the rest see `ShortLived`."""

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
        self._engine, self._clock, self._within = engine, clock, within
        self.node = ShortLived(
            instances=instances,
            clock=clock,
            pool=pool,
            command=command,
            offerings=offerings,
            token=token,
            said=said,
            by_hand=by_hand,
        )

    async def run(self) -> Sequence[Passed]:
        """Launch, follow, end: see `ShortLived.through`."""
        return await self.node.through(self._follow, self.node.console)

    async def _follow(self, machine: Instance) -> None:
        node, running = self.node, "running"
        while True:
            found = await node.look(running)
            if found.state is InstanceState.RUNNING:
                break
            self._in_time(running, f"{found.id} is {found.state}", "look at the quota and at EC2's status")
            await self._clock.sleep(PAUSE)
        node.passed(ok(machine.id, running))
        while not found.address:
            self._in_time("address", f"{found.id} has no private address", "look at its network interface")
            await self._clock.sleep(PAUSE)
            found = await node.look("address")
        node.passed(ok(found.address, "address"))
        for step in reach.Step:
            await self._come_to(step, found)

    async def _come_to(self, step: reach.Step, machine: Instance) -> None:
        since = self._clock.now()
        while (trouble := await reach.reached(self._engine, step, machine.address)) is not None:
            advice = reach.advice(trouble, machine)
            self._in_time(step, trouble.text, advice)
            healthy = step in (reach.Step.MODEL, reach.Step.SPEAKS)
            if healthy and self._clock.now() - since >= _AFTER_HEALTH:
                raise Failed(step, f"the engine is healthy, and {trouble.text}", advice)
            await self._clock.sleep(PAUSE)
            await self.node.look(step)
        self.node.passed(ok(machine.address, step))

    def _in_time(self, step: str, text: str, advice: str) -> None:
        """Raises Failed when the boot has had its time."""
        if self._clock.now() - self.node.begun >= self._within:
            spent = f"{text}, {age(self._within)} after the launch (health.boot_timeout)"
            raise Failed(step, spent, advice)
